"""What the demo model's dialogues are about: countries, names, topics and the like.

A value is either listed here or invented from syllables. Inventing many names keeps the model
from learning them by heart: it has to copy what it is told.
"""

LANGUAGES = ("en", "ko", "es")

# Country and capital in English, Korean and Spanish.
CAPITALS = [
    ("France", "Paris", "프랑스", "파리", "Francia", "París"),
    ("Germany", "Berlin", "독일", "베를린", "Alemania", "Berlín"),
    ("Spain", "Madrid", "스페인", "마드리드", "España", "Madrid"),
    ("Italy", "Rome", "이탈리아", "로마", "Italia", "Roma"),
    ("Portugal", "Lisbon", "포르투갈", "리스본", "Portugal", "Lisboa"),
    ("Japan", "Tokyo", "일본", "도쿄", "Japón", "Tokio"),
    ("South Korea", "Seoul", "대한민국", "서울", "Corea del Sur", "Seúl"),
    ("China", "Beijing", "중국", "베이징", "China", "Pekín"),
    ("India", "New Delhi", "인도", "뉴델리", "India", "Nueva Delhi"),
    ("Vietnam", "Hanoi", "베트남", "하노이", "Vietnam", "Hanói"),
    ("Thailand", "Bangkok", "태국", "방콕", "Tailandia", "Bangkok"),
    ("Indonesia", "Jakarta", "인도네시아", "자카르타", "Indonesia", "Yakarta"),
    ("Egypt", "Cairo", "이집트", "카이로", "Egipto", "El Cairo"),
    ("Kenya", "Nairobi", "케냐", "나이로비", "Kenia", "Nairobi"),
    ("Morocco", "Rabat", "모로코", "라바트", "Marruecos", "Rabat"),
    ("Ghana", "Accra", "가나", "아크라", "Ghana", "Acra"),
    ("Nigeria", "Abuja", "나이지리아", "아부자", "Nigeria", "Abuya"),
    ("Ethiopia", "Addis Ababa", "에티오피아", "아디스아바바", "Etiopía", "Adís Abeba"),
    ("Canada", "Ottawa", "캐나다", "오타와", "Canadá", "Ottawa"),
    ("Mexico", "Mexico City", "멕시코", "멕시코시티", "México", "Ciudad de México"),
    ("Cuba", "Havana", "쿠바", "아바나", "Cuba", "La Habana"),
    ("Peru", "Lima", "페루", "리마", "Perú", "Lima"),
    ("Chile", "Santiago", "칠레", "산티아고", "Chile", "Santiago"),
    ("Argentina", "Buenos Aires", "아르헨티나", "부에노스아이레스", "Argentina", "Buenos Aires"),
    ("Brazil", "Brasília", "브라질", "브라질리아", "Brasil", "Brasilia"),
    ("Colombia", "Bogotá", "콜롬비아", "보고타", "Colombia", "Bogotá"),
    ("Uruguay", "Montevideo", "우루과이", "몬테비데오", "Uruguay", "Montevideo"),
    ("Norway", "Oslo", "노르웨이", "오슬로", "Noruega", "Oslo"),
    ("Sweden", "Stockholm", "스웨덴", "스톡홀름", "Suecia", "Estocolmo"),
    ("Finland", "Helsinki", "핀란드", "헬싱키", "Finlandia", "Helsinki"),
    ("Denmark", "Copenhagen", "덴마크", "코펜하겐", "Dinamarca", "Copenhague"),
    ("Poland", "Warsaw", "폴란드", "바르샤바", "Polonia", "Varsovia"),
    ("Austria", "Vienna", "오스트리아", "빈", "Austria", "Viena"),
    ("Greece", "Athens", "그리스", "아테네", "Grecia", "Atenas"),
    ("Turkey", "Ankara", "튀르키예", "앙카라", "Turquía", "Ankara"),
    ("Ireland", "Dublin", "아일랜드", "더블린", "Irlanda", "Dublín"),
    ("Hungary", "Budapest", "헝가리", "부다페스트", "Hungría", "Budapest"),
    ("Belgium", "Brussels", "벨기에", "브뤼셀", "Bélgica", "Bruselas"),
    ("Australia", "Canberra", "호주", "캔버라", "Australia", "Canberra"),
    ("Iceland", "Reykjavik", "아이슬란드", "레이캬비크", "Islandia", "Reikiavik"),
]

CITIES = {
    "en": "London,New York,Chicago,Boston,Busan,Incheon,Osaka,Kyoto,Barcelona,Valencia,Milan,Naples,Munich,"
    "Hamburg,Lyon,Marseille,Sydney,Melbourne,Toronto,Vancouver,Mumbai,Shanghai,Hong Kong,Dubai,Zurich,"
    "Geneva,Porto,Seville,Dallas,Denver,Miami,Seattle,Austin,Daegu,Jeju,Los Angeles,San Francisco",
    "ko": "런던,뉴욕,시카고,보스턴,부산,인천,대구,광주,대전,울산,수원,제주,강릉,전주,오사카,교토,바르셀로나,발렌시아,"
    "밀라노,나폴리,뮌헨,함부르크,리옹,시드니,토론토,밴쿠버,뭄바이,상하이,홍콩,두바이,취리히,춘천,포항,여수",
    "es": "Londres,Nueva York,Chicago,Boston,Busan,Osaka,Kioto,Barcelona,Valencia,Sevilla,Bilbao,Málaga,Milán,"
    "Nápoles,Múnich,Hamburgo,Lyon,Sídney,Toronto,Bombay,Shanghái,Hong Kong,Dubái,Zúrich,Ginebra,Oporto,"
    "Rosario,Córdoba,Cusco,Cali,Medellín,Granada,Toledo,Salamanca,Guadalajara,Monterrey",
}
CITIES = {lang: names.split(",") for lang, names in CITIES.items()}

FIRST_NAMES = {
    "en": "Mina Alice Bob Carol David Emma Frank Grace Henry Ivy Jack Kate Leo Nora Oscar Paul Ruth Sam Tina "
    "Victor Wendy Adam Clara Daniel Ella Hugo Jane Luke Mary Noah Anna Peter John Sarah Tom Lisa Mark",
    "ko": "민지 지훈 서연 도윤 하은 준호 수빈 예진 현우 지우 유나 태민 소라 은비 재원 미나 동현 가은 시우 나연 "
    "민수 영희 철수 지민 수진 성호 하늘 보라",
    "es": "Lucía Mateo Sofía Diego Elena Pablo Carmen Javier Marta Andrés Rosa Luis Inés Tomás Clara Bruno "
    "Nuria Iván Alba Raúl Ana María Juan Pedro Miguel Laura Jorge Isabel",
}
FIRST_NAMES = {lang: names.split() for lang, names in FIRST_NAMES.items()}

PETS = {
    "en": [
        "Max",
        "Luna",
        "Coco",
        "Bella",
        "Rocky",
        "Milo",
        "Toto",
        "Nabi",
        "Kiki",
        "Simba",
        "Daisy",
        "Pipo",
        "Buddy",
        "Charlie",
        "Lucky",
        "Rex",
        "Fido",
        "Bruno",
    ],
    "ko": [
        "초코",
        "콩이",
        "보리",
        "나비",
        "두부",
        "까미",
        "해피",
        "코코",
        "몽이",
        "별이",
        "구름",
        "토리",
        "땅콩",
        "감자",
        "호두",
        "밤이",
        "쿠키",
        "사랑",
    ],
    "es": [
        "Max",
        "Luna",
        "Coco",
        "Bella",
        "Toby",
        "Milo",
        "Rocky",
        "Nala",
        "Kira",
        "Simba",
        "Lola",
        "Pipo",
        "Bruno",
        "Thor",
        "Chispa",
        "Rayo",
        "Canela",
        "Trufa",
    ],
}

COLOURS = {
    "en": [
        "red",
        "blue",
        "green",
        "yellow",
        "purple",
        "orange",
        "black",
        "white",
        "pink",
        "brown",
        "grey",
        "gold",
        "silver",
        "turquoise",
        "violet",
        "beige",
    ],
    "ko": [
        "빨간색",
        "파란색",
        "초록색",
        "노란색",
        "보라색",
        "주황색",
        "검은색",
        "흰색",
        "분홍색",
        "갈색",
        "회색",
        "금색",
        "은색",
        "하늘색",
        "남색",
        "연두색",
    ],
    "es": [
        "rojo",
        "azul",
        "verde",
        "amarillo",
        "morado",
        "naranja",
        "negro",
        "blanco",
        "rosa",
        "marrón",
        "gris",
        "dorado",
        "plateado",
        "turquesa",
        "violeta",
        "beige",
    ],
}

# Syllables for invented names and places.
SYLLABLES = {
    "en": [
        "ba",
        "be",
        "bo",
        "bri",
        "ca",
        "cor",
        "da",
        "del",
        "do",
        "el",
        "fa",
        "fen",
        "ga",
        "gri",
        "ha",
        "hol",
        "jo",
        "ka",
        "ken",
        "la",
        "lo",
        "lor",
        "ma",
        "mar",
        "mel",
        "mi",
        "mo",
        "na",
        "ne",
        "nor",
        "or",
        "pa",
        "per",
        "po",
        "ra",
        "ri",
        "ro",
        "sa",
        "sel",
        "sha",
        "si",
        "ta",
        "ter",
        "ti",
        "tor",
        "va",
        "vel",
        "vi",
        "wen",
        "wil",
        "yo",
        "za",
        "zen",
    ],
    "ko": [
        "가",
        "강",
        "고",
        "구",
        "기",
        "나",
        "남",
        "다",
        "대",
        "도",
        "동",
        "라",
        "로",
        "루",
        "리",
        "마",
        "모",
        "무",
        "미",
        "민",
        "바",
        "보",
        "부",
        "비",
        "사",
        "산",
        "서",
        "성",
        "소",
        "수",
        "시",
        "아",
        "안",
        "양",
        "연",
        "영",
        "오",
        "우",
        "원",
        "유",
        "은",
        "이",
        "인",
        "재",
        "정",
        "제",
        "주",
        "준",
        "지",
        "진",
        "채",
        "천",
        "청",
        "초",
        "카",
        "타",
        "토",
        "파",
        "하",
        "한",
        "해",
        "현",
        "호",
        "화",
        "훈",
        "희",
    ],
    "es": [
        "ba",
        "be",
        "bi",
        "bo",
        "ca",
        "co",
        "da",
        "de",
        "di",
        "do",
        "fa",
        "fe",
        "ga",
        "go",
        "la",
        "le",
        "li",
        "lo",
        "ma",
        "me",
        "mi",
        "mo",
        "na",
        "ne",
        "ni",
        "no",
        "pa",
        "pe",
        "pi",
        "po",
        "ra",
        "re",
        "ri",
        "ro",
        "sa",
        "se",
        "si",
        "so",
        "ta",
        "te",
        "ti",
        "to",
        "va",
        "ve",
        "vi",
        "za",
        "zo",
        "llo",
        "cha",
        "que",
        "al",
        "an",
        "ar",
        "en",
        "es",
        "in",
        "or",
    ],
}
ENDINGS = {
    "en": ["n", "s", "ton", "ville", "burg", "a", "field", "ia", "dale", "ry", "mouth", "ham"],
    "ko": ["", "", "", "시", "동", "마을"],
    "es": ["", "s", "n", "ar", "ero", "illa", "ña", "dor", "res", "nte", "ja"],
}


def invent(rng, lang):
    """An invented proper name: two or three syllables, with an ending half of the time, or two real names crossed."""
    if rng.random() < 0.4:
        return cross(*rng.sample(CITIES[lang] + FIRST_NAMES[lang] + PETS[lang], 2))
    name = "".join(rng.choices(SYLLABLES[lang], k=rng.choice((2, 2, 3))))
    if rng.random() < 0.5:
        name += rng.choice(ENDINGS[lang])
    return name[0].upper() + name[1:]


def cross(one, other):
    """The first half of a name and the last half of another: spelled like real names, but unknown."""
    return one[: (len(one) + 1) // 2] + other[len(other) // 2 :]


def listed_or_invented(listed):
    """A drawing function for names: mostly invented ones, since listed ones would be learned by heart."""
    return lambda rng, lang: rng.choice(listed[lang]) if rng.random() < 0.15 else invent(rng, lang)


def country_and_capital(row, lang):
    """The names of country number `row` and of its capital."""
    column = 2 * LANGUAGES.index(lang)
    return CAPITALS[row][column], CAPITALS[row][column + 1]


draw_city = listed_or_invented(CITIES)
draw_name = listed_or_invented(FIRST_NAMES)
draw_pet = listed_or_invented(PETS)

TOPICS = {
    "en": "black holes,love,the French Revolution,quantum physics,my cat,football,politics,the stock market,Shakespeare,"
    "dinosaurs,pasta,the moon,jazz,climate change,Python,Bitcoin,the sea,old books,winter,happiness,robots,"
    "artificial intelligence,volcanoes,the human heart,photosynthesis,democracy,the Roman Empire,chess,coffee,"
    "green tea,mountains,bees,whales,gravity,electricity,the internet,video games,movies,painting,music,ballet,"
    "tennis,vaccines,sleep,dreams,time travel,space travel,Mars,the sun,rain,bread,soup,healthy food,my friends,"
    "my boss,marriage,money,taxes,history,biology,chemistry,algebra,prime numbers,statistics,poetry,novels,"
    "trains,cars,bicycles,aeroplanes,ships,bridges,castles,ghosts,dragons,magic,religion,philosophy,Kant,Plato,"
    "Einstein,Newton,Mozart,Picasso,Napoleon,king Sejong,the Second World War,the Cold War,the economy,inflation,"
    "solar energy,plastic,forests,deserts,rivers,insects,spiders,snakes,horses,penguins,elephants,autumn leaves,"
    "machine learning,transformers,the Korean language,Spanish grammar,a sorting algorithm,linked lists,databases",
    "ko": "블랙홀,사랑,프랑스 혁명,양자 물리,우리 고양이,축구,정치,주식 시장,셰익스피어,공룡,파스타,달,재즈,기후 변화,파이썬,"
    "비트코인,바다,오래된 책,겨울,행복,로봇,인공지능,화산,심장,광합성,민주주의,로마 제국,체스,커피,녹차,산,꿀벌,고래,중력,"
    "전기,인터넷,게임,영화,그림,음악,발레,테니스,백신,잠,꿈,시간 여행,우주 여행,화성,태양,비,빵,김치,건강한 음식,내 친구,"
    "우리 사장님,결혼,돈,세금,역사,생물학,화학,대수학,소수,통계,시,소설,기차,자동차,자전거,비행기,배,다리,성,유령,용,마법,"
    "종교,철학,칸트,플라톤,아인슈타인,뉴턴,모차르트,피카소,나폴레옹,세종대왕,제2차 세계 대전,냉전,경제,물가,태양 에너지,"
    "플라스틱,숲,사막,강,곤충,거미,뱀,말,펭귄,코끼리,단풍,기계 학습,한국어,스페인어 문법,정렬 알고리즘,데이터베이스",
    "es": "los agujeros negros,el amor,la Revolución francesa,la física cuántica,mi gato,el fútbol,la política,la bolsa,"
    "Shakespeare,los dinosaurios,la pasta,la luna,el jazz,el cambio climático,Python,Bitcoin,el mar,los libros viejos,"
    "el invierno,la felicidad,los robots,la inteligencia artificial,los volcanes,el corazón,la fotosíntesis,"
    "la democracia,el Imperio romano,el ajedrez,el café,el té verde,las montañas,las abejas,las ballenas,la gravedad,"
    "la electricidad,internet,los videojuegos,el cine,la pintura,la música,el ballet,el tenis,las vacunas,el sueño,"
    "los viajes en el tiempo,los viajes espaciales,Marte,el sol,la lluvia,el pan,la sopa,la comida sana,mis amigos,"
    "mi jefe,el matrimonio,el dinero,los impuestos,la historia,la biología,la química,el álgebra,los números primos,"
    "la estadística,la poesía,las novelas,los trenes,los coches,las bicicletas,los aviones,los barcos,los puentes,"
    "los castillos,los fantasmas,los dragones,la magia,la religión,la filosofía,Kant,Platón,Einstein,Newton,Mozart,"
    "Picasso,Napoleón,el rey Sejong,la Segunda Guerra Mundial,la Guerra Fría,la economía,la inflación,la energía solar,"
    "el plástico,los bosques,los desiertos,los ríos,los insectos,las arañas,las serpientes,los caballos,los pingüinos,"
    "los elefantes,las hojas de otoño,el aprendizaje automático,la lengua coreana,la gramática,las bases de datos",
}
TOPICS = {lang: topics.split(",") for lang, topics in TOPICS.items()}


def draw_topic(rng, lang):
    """Something the model knows nothing about: a topic, two topics, or an invented name."""
    kind = rng.random()
    if kind < 0.25:
        return invent(rng, lang)
    if kind < 0.4:
        one, other = rng.sample(TOPICS[lang], 2)
        return one + {"en": " and ", "ko": " 그리고 ", "es": " y "}[lang] + other
    return rng.choice(TOPICS[lang])


def ends_in_consonant(text):
    """Whether a Korean word, or a number read in Korean, ends in a consonant."""
    last = text[-1]
    if last.isdigit():
        return last in "013678"
    return "가" <= last <= "힣" and (ord(last) - ord("가")) % 28 != 0


def josa(text, after_consonant, after_vowel):
    """`text` with the Korean particle that its last sound asks for."""
    return f"{text}{after_consonant if ends_in_consonant(text) else after_vowel}"
