"""A clock for a model: a place -> the time there.

Notes:
- cities.json lists the places that are not named like their time zone, in English, Korean and Spanish: zone -> names.
  Of several cities with one name, it lists the largest. The result names the zone.
- The model reads the docstring of `current_time`. The demo was trained with these words.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import unicodedata
import zoneinfo
from pathlib import Path

# strftime's names depend on the language of the computer.
MONTHS = tuple("January February March April May June July August September October November December".split())
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
#: What may follow the name of a city in Korean: "city of", then a particle. A small model copies them too.
KOREAN_ENDINGS = r"(특별시|광역시|특별자치시|시)?(은|는|이|가|의|에|에서|에는)?$"
LOCAL = {"", "local", "here", "현지", "여기", "aquí"}


def current_time(city: str) -> dict[str, str]:
    """Get the current time of a city.

    Args:
        city: Name of the city
    """
    name, zone = _find_zone(city)
    now = now_in(zone)
    offset = now.strftime("%z")
    return {
        "city": name,
        "time": now.strftime("%H:%M"),
        "weekday": WEEKDAYS[now.weekday()],
        "date": f"{now.day} {MONTHS[now.month - 1]} {now.year}",
        "zone": f"{zone.key if isinstance(zone, zoneinfo.ZoneInfo) else now.tzname()} (UTC{offset[:3]}:{offset[3:5]})",
    }


def now_in(zone: datetime.tzinfo | None) -> datetime.datetime:
    return datetime.datetime.now(zone).astimezone(zone)


def _find_zone(city: str) -> tuple[str, datetime.tzinfo | None]:
    """The name of a place without Korean particles, and its time zone: None is the computer's own.

    Raises ValueError for an unknown place.
    """
    place = city.strip()
    if place.casefold() in LOCAL:
        return place or "local", None
    if offset := re.fullmatch(r"(?:UTC|GMT|Z)(?:([+-])(\d{1,2})(?::?([0-5]\d))?)?", place.upper()):
        minutes = int(offset[2] or 0) * 60 + int(offset[3] or 0)
        if minutes <= 14 * 60:
            return place, datetime.timezone(datetime.timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    for name in (place, place.split(",")[0], re.sub(KOREAN_ENDINGS, "", place)):
        if zone := zones().get(fold(name)):
            return name, zoneinfo.ZoneInfo(zone)
    raise ValueError(f"unknown city {place[:60]!r}; give a large city or a time zone such as Europe/Paris")


@functools.cache
def zones() -> dict[str, str]:
    """Folded names of places -> time zones: the zones' own names, then those of cities.json."""
    available = zoneinfo.available_timezones()
    if not available:
        raise ValueError("this computer has no time zone data; install the Python package tzdata")
    found = {fold(zone.rpartition("/")[2]): zone for zone in sorted(available) if "/" in zone}
    found |= {fold(zone): zone for zone in available}
    for zone, names in cities().items():
        if zone in available:  # the computer's data may be older than the table
            found |= {fold(name): zone for name in (zone.rpartition("/")[2], *names)}
    return found


def cities() -> dict[str, list[str]]:
    """Time zone -> names of places."""
    return json.loads(Path(__file__).with_name("cities.json").read_text(encoding="utf-8"))


def fold(name: str) -> str:
    """The name without case, accents, spaces and marks."""
    decomposed = unicodedata.normalize("NFD", name.casefold())
    kept = (part for part in decomposed if not unicodedata.combining(part) and (part.isalnum() or part in "/+"))
    return unicodedata.normalize("NFC", "".join(kept))
