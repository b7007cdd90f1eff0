"""A converter of units for a model.

What is peculiar here:
- Names of units are read in English, Korean and Spanish; Korean customary ones are among them.
- What can be read in two ways ("ton", "mb") is refused with a question back, not guessed.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from fractions import Fraction

from .calculator import Number, plain_number


def convert_units(value: float, from_unit: str, to_unit: str) -> dict[str, Number]:
    """Convert a value from one unit of measurement to another.

    Args:
        value: The number to convert
        from_unit: Unit of the value, for example km
        to_unit: Unit to convert to, for example mile
    """
    if not math.isfinite(value):
        raise ValueError("the value must be a finite number")
    kind, source = _unit(from_unit)
    other, target = _unit(to_unit)
    if kind != other:
        raise ValueError(f"{from_unit.strip()} is a unit of {kind}, {to_unit.strip()} is one of {other}")
    base = (Fraction(str(value)) + source.zero) * source.factor
    if kind == "temperature" and base < 0:
        raise ValueError("that is below absolute zero")
    return {"value": plain_number(base / target.factor - target.zero, digits=12), "unit": target.name}


class _Unit:
    """(value + zero) · factor is the value in the base unit of its kind."""

    def __init__(self, name: str, factor: str, zero: str = "0") -> None:
        self.name, self.factor, self.zero = name, Fraction(factor), Fraction(zero)


#: kind -> lines of: factor to the base unit, symbol, other names (English names also in the plural)
UNITS = {
    "length": """
        1/1000000000 nm nanometre nanometer 나노미터 nanómetro
        1/1000000 µm um μm micrometre micrometer micron 마이크로미터 micrómetro
        1/1000 mm millimetre millimeter 밀리미터 milímetro
        1/100 cm centimetre centimeter 센티미터 센티 centímetro
        1 m metre meter 미터 metro
        1000 km kilometre kilometer 킬로미터 kilómetro
        0.0254 in inch inches 인치 pulgada
        0.3048 ft foot feet 피트 pie
        0.9144 yd yard 야드 yarda
        1609.344 mi mile 마일 milla
        1852 nmi nautical_mile 해리 milla_náutica
        149597870700 au astronomical_unit 천문단위 unidad_astronómica
        9460730472580800 ly light_year lightyear 광년 año_luz años_luz
        10/33 자 ja
        4320/11 리 ri""",
    "mass": """
        1/1000000 mg milligram 밀리그램 miligramo
        1/1000 g gram 그램 gramo
        1 kg kilogram kilo 킬로그램 킬로 kilogramo
        1000 t tonne metric_ton 톤 tonelada
        907.18474 short_ton US_ton
        1016.0469088 long_ton
        0.028349523125 oz ounce 온스 onza
        0.45359237 lb lbs pound 파운드 libra
        6.35029318 st stone 스톤
        0.6 근 geun
        0.0375 냥 nyang
        0.00375 돈 don""",
    "area": """
        1/1000000 mm² mm2 mm^2 square_millimetre square_millimeter 제곱밀리미터
        1/10000 cm² cm2 cm^2 square_centimetre square_centimeter 제곱센티미터 centímetro_cuadrado centímetros_cuadrados
        1 m² m2 m^2 sqm square_metre square_meter 제곱미터 평방미터 metro_cuadrado metros_cuadrados
        1000000 km² km2 km^2 square_kilometre square_kilometer 제곱킬로미터 kilómetro_cuadrado kilómetros_cuadrados
        10000 ha hectare 헥타르 hectárea
        0.00064516 in² in2 in^2 square_inch square_inches 제곱인치 pulgada_cuadrada pulgadas_cuadradas
        0.09290304 ft² ft2 ft^2 sqft square_foot square_feet 제곱피트 pie_cuadrado pies_cuadrados
        0.83612736 yd² yd2 yd^2 square_yard
        4046.8564224 acre 에이커
        2589988.110336 mi² mi2 mi^2 square_mile 제곱마일 milla_cuadrada millas_cuadradas
        400/121 평 pyeong""",
    "volume": """
        1/1000 mL ml cc cm³ cm3 cm^3 millilitre milliliter cubic_centimetre cubic_centimeter 밀리리터 시시 mililitro
        1/10 dL dl decilitre deciliter 데시리터 decilitro
        1 L l litre liter 리터 litro
        1000 m³ m3 m^3 cubic_metre cubic_meter 세제곱미터 입방미터 metro_cúbico metros_cúbicos
        3.785411784 gal gallon US_gallon 갤런 galón galones
        4.54609 imperial_gallon UK_gallon
        0.946352946 qt quart 쿼트
        0.473176473 pt pint 파인트 pinta
        0.2365882365 cup 컵 taza
        0.0295735295625 fl_oz floz fluid_ounce 액량온스 onza_líquida onzas_líquidas
        0.01478676478125 tbsp tablespoon 큰술 cucharada
        0.00492892159375 tsp teaspoon 작은술 cucharadita
        0.016387064 in³ in3 in^3 cubic_inch cubic_inches
        28.316846592 ft³ ft3 ft^3 cubic_foot cubic_feet
        2401/1331 되 doe
        24010/1331 말 mal""",
    "speed": """
        1 m/s mps metre_per_second metres_per_second meter_per_second meters_per_second 초속 metros_por_segundo
        5/18 km/h kph kmh kilometre_per_hour kilometres_per_hour kilometer_per_hour kilometers_per_hour 시속
          kilómetros_por_hora
        0.44704 mph mile_per_hour miles_per_hour millas_por_hora
        463/900 kn kt knot 노트 nudo
        0.3048 ft/s fps foot_per_second feet_per_second""",
    "time": """
        1/1000000000 ns nanosecond 나노초 nanosegundo
        1/1000000 µs us μs microsecond 마이크로초 microsegundo
        1/1000 ms millisecond 밀리초 milisegundo
        1 s sec second 초 segundo
        60 min minute 분 minuto
        3600 h hr hour 시간 hora
        86400 d day 일 día
        604800 wk week 주 semana
        31557600 yr year 년 año""",
    "energy": """
        1 J joule 줄 julio
        1000 kJ kilojoule 킬로줄 kilojulio
        1000000 MJ megajoule 메가줄
        4.184 cal calorie 칼로리 caloría
        4184 kcal kilocalorie 킬로칼로리 kilocaloría
        3600 Wh watt_hour 와트시 vatio_hora vatios_hora
        3600000 kWh kilowatt_hour 킬로와트시 kilovatio_hora kilovatios_hora
        1055.05585262 BTU british_thermal_unit
        1602176634/10000000000000000000000000000 eV electronvolt 전자볼트 electronvoltio""",
    "pressure": """
        1 Pa pascal 파스칼
        100 hPa hectopascal 헥토파스칼 mbar millibar 밀리바 milibar
        1000 kPa kilopascal 킬로파스칼
        1000000 MPa megapascal 메가파스칼
        100000 bar 바 bares
        101325 atm atmosphere 기압 atmósfera
        6894.757293168 psi
        133.322387415 mmHg 수은주밀리미터
        101325/760 torr 토르
        3386.388640341 inHg""",
    "data": """
        1/8 bit 비트
        1 B byte 바이트
        1000 kB KB kilobyte 킬로바이트
        1000000 MB megabyte 메가바이트
        1000000000 GB gigabyte 기가바이트 기가
        1000000000000 TB terabyte 테라바이트
        1000000000000000 PB petabyte 페타바이트
        1024 KiB kibibyte
        1048576 MiB mebibyte
        1073741824 GiB gibibyte
        1099511627776 TiB tebibyte
        125 kbit Kb kilobit 킬로비트
        125000 Mbit Mb megabit 메가비트
        125000000 Gbit Gb gigabit 기가비트""",
}
#: In kelvin: (value + zero) · factor.
TEMPERATURES = {
    "°C C celsius centigrade degree_celsius degrees_celsius 섭씨 섭씨도 grado_celsius grados_celsius": ("1", "273.15"),
    "°F F fahrenheit degree_fahrenheit degrees_fahrenheit 화씨 화씨도 grado_fahrenheit grados_fahrenheit": (
        "5/9",
        "459.67",
    ),
    "K kelvin 켈빈": ("1", "0"),
}
#: Units that would be guessed wrong, by name or by the case of a letter.
UNCLEAR = {
    **{"ton": "tonne, short ton or long ton", "tons": "tonnes, short tons or long tons"},
    **{"month": "days or years", "months": "days or years"},
    **{"Ms": "ms or s", "Mg": "mg or t", "Mm": "mm or km", "Ml": "mL or m³", "mPa": "Pa or MPa", "mJ": "J or MJ"},
}


def _unit(name: str) -> tuple[str, _Unit]:
    """The kind of a unit and the unit. The case of letters counts where two units differ by it (MB, Mb)."""
    plain = re.sub(r"[\s_]+", "_", name.strip().strip("."))
    if hint := UNCLEAR.get(plain) or UNCLEAR.get(plain.casefold()):
        raise ValueError(f"the unit {plain!r} is not clear; say {hint}")
    exact, folded = _units()
    for key in (plain, plain.removesuffix("s") if len(plain) > 3 else plain):
        found = [exact[key]] if key in exact else folded.get(_unmarked(key), [])
        if len(names := {unit.name for _, unit in found}) > 1:
            raise ValueError(f"the unit {plain!r} can be {' or '.join(sorted(names))}")
        if found:
            return found[0]
    raise ValueError(f"unknown unit {plain[:40]!r}; known are units of {', '.join(UNITS)} and temperature")


def _unmarked(name: str) -> str:
    parts = unicodedata.normalize("NFD", name.casefold())
    return unicodedata.normalize("NFC", "".join(part for part in parts if not unicodedata.combining(part)))


Found = tuple[str, _Unit]


@functools.cache
def _units() -> tuple[dict[str, Found], dict[str, list[Found]]]:
    """Every name as it is written -> its unit; every name without case and accents -> its units."""
    exact: dict[str, Found] = {}
    for kind, table in UNITS.items():
        for line in re.sub(r"\n {10}", " ", table).strip().splitlines():
            factor, *names = line.split()
            unit = _Unit(names[0].replace("_", " "), factor)
            exact |= dict.fromkeys(names, (kind, unit))
    for listed, (factor, zero) in TEMPERATURES.items():
        names = listed.split()
        exact |= dict.fromkeys(names, ("temperature", _Unit(names[0], factor, zero)))
    folded: dict[str, list[Found]] = {}
    for name, found in exact.items():
        folded.setdefault(_unmarked(name), []).append(found)
    return exact, folded
