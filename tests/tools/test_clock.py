"""The clock: places in three languages, and clear refusals."""

from __future__ import annotations

import datetime
import zoneinfo

import pytest

from exaone4_mlx.tools import clock
from exaone4_mlx.tools.clock import current_time

#: City, the time there at noon in Greenwich on the first of July 2025, zone.
TIMES = [
    ("Seoul", "21:00", "Asia/Seoul (UTC+09:00)"),
    ("부산", "21:00", "Asia/Seoul (UTC+09:00)"),
    ("서울특별시", "21:00", "Asia/Seoul (UTC+09:00)"),
    ("부산은", "21:00", "Asia/Seoul (UTC+09:00)"),
    ("서울시의", "21:00", "Asia/Seoul (UTC+09:00)"),
    ("대구", "21:00", "Asia/Seoul (UTC+09:00)"),
    ("Seoul, South Korea", "21:00", "Asia/Seoul (UTC+09:00)"),
    ("París", "14:00", "Europe/Paris (UTC+02:00)"),
    ("la habana", "08:00", "America/Havana (UTC-04:00)"),
    ("NEW YORK", "08:00", "America/New_York (UTC-04:00)"),
    ("Washington, D.C.", "08:00", "America/New_York (UTC-04:00)"),
    ("São Paulo", "09:00", "America/Sao_Paulo (UTC-03:00)"),
    ("뉴델리", "17:30", "Asia/Kolkata (UTC+05:30)"),
    ("Kathmandu", "17:45", "Asia/Kathmandu (UTC+05:45)"),
    ("빈", "14:00", "Europe/Vienna (UTC+02:00)"),
    ("Pacific/Auckland", "00:00", "Pacific/Auckland (UTC+12:00)"),
    ("asia/tokyo", "21:00", "Asia/Tokyo (UTC+09:00)"),
    ("UTC", "12:00", "UTC (UTC+00:00)"),
    ("UTC-3:30", "08:30", "UTC-03:30 (UTC-03:30)"),
]


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime.datetime(2025, 7, 1, 12, 0, tzinfo=datetime.timezone.utc)
    monkeypatch.setattr(clock, "now_in", lambda zone: moment.astimezone(zone))


@pytest.mark.usefixtures("noon")
def test_cities_in_three_languages() -> None:
    for city, shown, zone in TIMES:
        result = current_time(city)
        assert (result["time"], result["zone"]) == (shown, zone), city
        day = ("2 July 2025", "Wednesday") if shown == "00:00" else ("1 July 2025", "Tuesday")
        assert (result["date"], result["weekday"]) == day, city


@pytest.mark.usefixtures("noon")
def test_korean_endings_are_removed_from_the_city() -> None:
    assert current_time("부산은")["city"] == "부산"
    assert current_time("대구")["city"] == "대구", "the name itself ends like a particle"


def test_without_a_city_the_time_is_local() -> None:
    for city in ("", " local "):
        before = datetime.datetime.now()
        result = current_time(city)
        shown = datetime.datetime.strptime(f"{result['date']} {result['time']}", "%d %B %Y %H:%M")
        assert datetime.timedelta(minutes=-1) <= shown - before <= datetime.timedelta(minutes=1)
        assert result["city"] == "local"


def test_an_unknown_place_is_an_error() -> None:
    for city in ("Atlantis", "../../etc/passwd", "/etc/localtime", "UTC+99", "x" * 5000, "\0", "시"):
        with pytest.raises(ValueError, match="unknown city") as caught:
            current_time(city)
        assert len(str(caught.value)) < 200, city[:20]


def test_every_zone_of_the_table_exists_and_every_name_has_one_zone() -> None:
    seen: dict[str, str] = {}
    for zone, names in clock.cities().items():
        assert zoneinfo.ZoneInfo(zone).key == zone
        for name in names:
            assert seen.setdefault(clock.fold(name), zone) == zone, name


def test_a_zone_that_this_computer_does_not_have_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", lambda: {"Asia/Seoul"})
    clock.zones.cache_clear()
    try:
        assert current_time("서울")["city"] == "서울"
        with pytest.raises(ValueError, match="unknown city"):
            current_time("도쿄")
    finally:
        clock.zones.cache_clear()


def test_without_time_zone_data_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    clock.zones.cache_clear()
    with pytest.raises(ValueError, match="tzdata"):
        current_time("Seoul")
    assert current_time("UTC")["zone"] == "UTC (UTC+00:00)", "needs no data"
