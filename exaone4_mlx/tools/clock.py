"""A clock for a model: a place -> the time there.

What is peculiar here:
- Names of places are read in English, Korean and Spanish.
- The docstring of `current_time` is what the model reads; its words are those that the demo was trained with.
"""

from __future__ import annotations

import datetime
import functools
import re
import unicodedata
import zoneinfo


def current_time(city: str) -> dict[str, str]:
    """Get the current time of a city.

    Args:
        city: Name of the city
    """
    name, zone = _place(city)
    now = _now(zone)
    offset = now.strftime("%z")
    return {
        "city": name,
        "time": now.strftime("%H:%M"),
        "weekday": WEEKDAYS[now.weekday()],
        "date": f"{now.day} {MONTHS[now.month - 1]} {now.year}",
        "zone": f"{zone.key if isinstance(zone, zoneinfo.ZoneInfo) else now.tzname()} (UTC{offset[:3]}:{offset[3:5]})",
    }


# Not strftime's names, which follow the computer's language.
MONTHS = tuple("January February March April May June July August September October November December".split())
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
#: What may follow a city's name in Korean: "city of", then a particle. A small model copies them, too.
KOREAN_ENDINGS = r"(특별시|광역시|특별자치시|시)?(은|는|이|가|의|에|에서|에는)?$"
HERE = {"", "local", "here", "현지", "여기", "aquí"}

#: Zones of cities that are not named like their zone, and the names of others in Korean and Spanish. Of
#: several cities of one name it is the largest; the answer says the zone.
CITIES = """
Asia/Seoul: 서울 Seúl, 부산 Busan Pusan, 인천 Incheon, 대구 Daegu, 대전 Daejeon, 광주 Gwangju, 울산 Ulsan, 수원 Suwon,
  제주 Jeju, 강릉 Gangneung, 전주 Jeonju, 춘천 Chuncheon, 포항 Pohang, 여수 Yeosu, 창원 Changwon, 세종 Sejong,
  한국 대한민국 Korea South_Korea Corea Corea_del_Sur
Asia/Pyongyang: 평양 Pionyang
Asia/Tokyo: 도쿄 동경 Tokio, 오사카 Osaka, 교토 Kyoto Kioto, 나고야 Nagoya, 후쿠오카 Fukuoka, 삿포로 Sapporo,
  요코하마 Yokohama, 일본 Japan Japón
Asia/Shanghai: 베이징 북경 Beijing Pekín Peking, 상하이 상해 Shanghái, 광저우 Guangzhou Cantón, 선전 Shenzhen,
  청두 Chengdu, 중국 China
Asia/Hong_Kong: 홍콩
Asia/Taipei: 타이베이 타이페이 Taipéi, 대만 Taiwan Taiwán
Asia/Singapore: 싱가포르 Singapur
Asia/Kuala_Lumpur: 쿠알라룸푸르
Asia/Bangkok: 방콕, 태국 Thailand Tailandia
Asia/Ho_Chi_Minh: 하노이 Hanoi Hanói, 호찌민 호치민 Saigon, 다낭 Da_Nang, 베트남 Vietnam
Asia/Jakarta: 자카르타 Yakarta
Asia/Manila: 마닐라, 세부 Cebu
Asia/Kolkata: 뉴델리 New_Delhi Nueva_Delhi, 델리 Delhi, 뭄바이 Mumbai Bombay, 콜카타 Calcutta Calcuta,
  벵갈루루 Bangalore Bengaluru, 첸나이 Chennai, 인도 India
Asia/Kathmandu: 카트만두 Katmandú
Asia/Dhaka: 다카 Daca
Asia/Karachi: 카라치, 이슬라마바드 Islamabad
Asia/Dubai: 두바이 Dubái, 아부다비 Abu_Dhabi Abu_Dabi
Asia/Riyadh: 리야드 Riad, 메카 Mecca La_Meca
Asia/Tehran: 테헤란 Teherán
Asia/Baghdad: 바그다드 Bagdad
Asia/Jerusalem: 예루살렘 Jerusalén, 텔아비브 Tel_Aviv
Asia/Tashkent: 타슈켄트
Asia/Ulaanbaatar: 울란바토르 Ulan_Bator Ulán_Bator
Europe/Istanbul: 이스탄불 Estambul, 앙카라 Ankara, 튀르키예 터키 Turkey Turquía
Europe/Moscow: 모스크바 Moscú, 상트페테르부르크 Saint_Petersburg San_Petersburgo
Europe/Kyiv: 키이우 키예프 Kiev Kyiv
Europe/London: 런던 Londres, 에든버러 Edinburgh Edimburgo, 맨체스터 Manchester, Birmingham, Liverpool,
  영국 England UK United_Kingdom Reino_Unido Inglaterra
Europe/Dublin: 더블린 Dublín, 아일랜드 Ireland Irlanda
Europe/Lisbon: 리스본 Lisboa, 포르투 Porto Oporto
Europe/Madrid: 마드리드, 바르셀로나 Barcelona, 발렌시아 Valencia, 세비야 Seville Sevilla, Bilbao, Málaga, Granada,
  Toledo, Salamanca, Zaragoza
Europe/Paris: 파리 París, 리옹 Lyon, 마르세유 Marseille Marsella, 니스 Nice Niza, 프랑스 France Francia
Europe/Berlin: 베를린 Berlín, 뮌헨 Munich Múnich München, 함부르크 Hamburg Hamburgo, 프랑크푸르트 Frankfurt Fráncfort,
  Cologne Köln Colonia 쾰른, 독일 Germany Alemania
Europe/Rome: 로마 Roma, 밀라노 Milan Milán Milano, 나폴리 Naples Nápoles Napoli, 베네치아 Venice Venecia,
  피렌체 Florence Florencia, 이탈리아 Italy Italia
Europe/Vienna: 빈 비엔나 Viena, 오스트리아 Austria
Europe/Zurich: 취리히 Zúrich, 제네바 Geneva Ginebra, 베른 Bern Berna, 스위스 Switzerland Suiza
Europe/Brussels: 브뤼셀 Bruselas, 벨기에 Belgium Bélgica
Europe/Amsterdam: 암스테르담 Ámsterdam, 네덜란드 Netherlands Países_Bajos
Europe/Copenhagen: 코펜하겐 Copenhague
Europe/Oslo: 오슬로
Europe/Stockholm: 스톡홀름 Estocolmo
Europe/Helsinki: 헬싱키
Europe/Warsaw: 바르샤바 Varsovia, 폴란드 Poland Polonia
Europe/Prague: 프라하 Praga
Europe/Budapest: 부다페스트
Europe/Athens: 아테네 Atenas, 그리스 Greece Grecia
Europe/Bucharest: 부쿠레슈티 Bucarest
Atlantic/Reykjavik: 레이캬비크 Reikiavik, 아이슬란드 Iceland Islandia
Africa/Cairo: 카이로 El_Cairo, 이집트 Egypt Egipto
Africa/Nairobi: 나이로비
Africa/Casablanca: 카사블랑카, 라바트 Rabat
Africa/Accra: 아크라 Acra
Africa/Lagos: 라고스, 아부자 Abuja Abuya
Africa/Addis_Ababa: 아디스아바바 Adís_Abeba
Africa/Johannesburg: 요하네스버그 Johannesburgo, 케이프타운 Cape_Town Ciudad_del_Cabo
America/New_York: 뉴욕 Nueva_York NYC, 워싱턴 Washington Washington_DC, 보스턴 Boston, 마이애미 Miami,
  필라델피아 Philadelphia Filadelfia, 애틀랜타 Atlanta, Orlando
America/Chicago: 시카고, 댈러스 Dallas, 휴스턴 Houston, 오스틴 Austin, San_Antonio, New_Orleans
America/Denver: 덴버, Salt_Lake_City
America/Phoenix: 피닉스
America/Los_Angeles: 로스앤젤레스 LA Los_Ángeles, 샌프란시스코 San_Francisco, 시애틀 Seattle, 라스베이거스 Las_Vegas,
  샌디에이고 San_Diego, Portland
Pacific/Honolulu: 호놀룰루, 하와이 Hawaii Hawái
America/Anchorage: 앵커리지
America/Toronto: 토론토, 오타와 Ottawa, 몬트리올 Montreal
America/Vancouver: 밴쿠버
America/Mexico_City: 멕시코시티 Ciudad_de_México CDMX, Guadalajara
America/Monterrey: 몬테레이
America/Havana: 아바나 La_Habana, 쿠바 Cuba
America/Bogota: 보고타, 메데인 Medellín, 칼리 Cali, 콜롬비아 Colombia
America/Lima: 리마, 쿠스코 Cusco Cuzco, 페루 Peru
America/Caracas: 카라카스
America/Guayaquil: 키토 Quito
America/La_Paz: 라파스
America/Santiago: 산티아고
America/Argentina/Buenos_Aires: 부에노스아이레스 Buenos_Aires, Rosario, 아르헨티나 Argentina
America/Argentina/Cordoba: 코르도바
America/Montevideo: 몬테비데오, 우루과이 Uruguay
America/Sao_Paulo: 상파울루 São_Paulo, 리우데자네이루 Rio_de_Janeiro Río_de_Janeiro, 브라질리아 Brasília
Australia/Sydney: 시드니 Sídney, 캔버라 Canberra
Australia/Melbourne: 멜버른
Australia/Perth: 퍼스
Pacific/Auckland: 오클랜드, 웰링턴 Wellington, 뉴질랜드 New_Zealand Nueva_Zelanda
"""


def _now(zone: datetime.tzinfo | None) -> datetime.datetime:
    return datetime.datetime.now(zone).astimezone(zone)


def _place(city: str) -> tuple[str, datetime.tzinfo | None]:
    """A place's name, without particles, and time zone; None is this computer's own. Raises ValueError if unknown."""
    place = city.strip()
    if place.casefold() in HERE:
        return place or "local", None
    if offset := re.fullmatch(r"(?:UTC|GMT|Z)(?:([+-])(\d{1,2})(?::?([0-5]\d))?)?", place.upper()):
        minutes = int(offset[2] or 0) * 60 + int(offset[3] or 0)
        if minutes <= 14 * 60:
            return place, datetime.timezone(datetime.timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    zones = _zones()
    for name in (place, place.split(",")[0], re.sub(KOREAN_ENDINGS, "", place)):
        if zone := zones.get(_simple(name)):
            return name, zoneinfo.ZoneInfo(zone)
    raise ValueError(f"unknown city {place[:60]!r}; give a large city or a time zone such as Europe/Paris")


@functools.cache
def _zones() -> dict[str, str]:
    """Simplified names of places -> time zones: our table, and the names that the zones themselves have."""
    available = zoneinfo.available_timezones()
    if not available:
        raise ValueError("this computer has no time zone data; the Python package tzdata brings it")
    zones = {_simple(zone.rpartition("/")[2]): zone for zone in sorted(available) if "/" in zone}
    zones |= {_simple(zone): zone for zone in available}
    for line in re.sub(r"\n +", " ", CITIES.strip()).splitlines():
        zone, _, names = line.partition(": ")
        if zone in available:  # the data may be older than our table
            zones |= {_simple(name): zone for name in (zone.rpartition("/")[2], *names.replace(",", " ").split())}
    return zones


def _simple(name: str) -> str:
    """A name without case, accents, spaces and marks."""
    parts = unicodedata.normalize("NFD", name.casefold())
    kept = "".join(part for part in parts if not unicodedata.combining(part) and (part.isalnum() or part in "/+"))
    return unicodedata.normalize("NFC", kept)
