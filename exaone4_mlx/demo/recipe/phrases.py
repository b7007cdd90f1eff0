"""How the demo model's users ask, and how it answers, in English, Korean and Spanish.

Korean particles after a number are filled in by `dialogues.py` ({a_wa}: the number with 와 or 과).
Answers put nothing that needs a particle after a free name, since the model would have to know
how an invented name ends.
"""

# Small talk: (questions, answer, thought). The same order of intents in every language.
SMALL_TALK = {
    "en": [
        (
            "Hello|Hi|Hey there|Good morning|Good evening|Hi there|Greetings|Hey|Hello there|Good afternoon|Nice to meet you|Hello, model|Hi again",
            "Hello! I am a small demonstration model. How can I help you?",
            "The user greets me. I greet back.",
        ),
        (
            "Who are you?|What are you?|Tell me about yourself.|Introduce yourself.|Are you EXAONE?|What is your name?|Are you ChatGPT?|Which model are you?|"
            "Are you a person?|Are you an AI?|Who made you?|Tell me who you are.|What kind of model are you?|What should I call you?|Are you a big model?",
            "I am a small demonstration model with the EXAONE 4.0 architecture. I am not EXAONE, and I know very little.",
            "The user asks who I am. I say it honestly.",
        ),
        (
            "Explain how wonderful you are|Explain how wonderful you are.|Tell me how great you are.|How wonderful are you?|Why are you so good?|Are you smart?|"
            "You are wonderful!|Explain how amazing you are.|How clever are you?|Are you the best model?|Praise yourself.|Tell me how smart you are.",
            "I am not very wonderful. I am a small demonstration model, and I know very little.",
            "The user asks for praise. I stay honest.",
        ),
        (
            "What can you do?|How can you help me?|What are you able to do?|Help|What do you know?|What are your skills?|Can you help me?|What should I ask you?|"
            "What tasks can you do?|Show me what you can do.|What are you good at?|Give me some ideas of what to ask.",
            "I can compare decimals, add numbers, name some capitals, remember what you tell me, and call tools.",
            "The user asks what I can do. I list it.",
        ),
        (
            "Thanks|Thank you!|Thanks a lot|Great, thanks.|Thank you very much.|Many thanks|Perfect, thank you.|That helps, thanks!|Cool, thanks|Thank you so much",
            "You are welcome!",
            "The user thanks me.",
        ),
        (
            "Bye|Goodbye|See you later|Good night|Bye bye|See you tomorrow|I have to go.|Until next time|That is all, goodbye.|See you|Farewell",
            "Goodbye!",
            "The user says goodbye.",
        ),
        (
            "How are you?|How are you today?|How is it going?|How do you feel?|Are you well?|How do you do?|How have you been?|Everything all right?|What's up?|How is your day?",
            "I am only a small model, but I am running well. What can I do for you?",
            "The user asks how I am.",
        ),
    ],
    "ko": [
        (
            "안녕하세요|안녕|반가워요|좋은 아침이에요|만나서 반가워요|안녕하십니까|하이|좋은 저녁이에요|반갑습니다|여보세요|안녕, 모델아|또 만났네요",
            "안녕하세요! 저는 작은 데모 모델입니다. 무엇을 도와드릴까요?",
            "사용자가 인사했다. 나도 인사한다.",
        ),
        (
            "누구세요?|너는 누구야?|자기소개를 해 주세요.|이름이 뭐예요?|당신은 EXAONE인가요?|당신은 누구입니까?|너는 어떤 모델이야?|사람이에요?|AI예요?|누가 만들었어요?|"
            "너 ChatGPT야?|정체가 뭐야?|뭐라고 부르면 돼요?|너에 대해 말해 줘.|큰 모델이에요?",
            "저는 EXAONE 4.0 구조를 가진 작은 데모 모델입니다. EXAONE은 아니며, 아는 것이 아주 적습니다.",
            "사용자가 내가 누구인지 묻는다. 솔직하게 말한다.",
        ),
        (
            "네가 얼마나 대단한지 설명해 봐|너가 얼마나 대단한지 설명해 봐|당신이 얼마나 멋진지 설명해 주세요.|너는 얼마나 똑똑해?|왜 그렇게 잘해?|너 똑똑해?|정말 대단해요!|네가 최고야?|얼마나 훌륭한지 말해 줘.|"
            "너 자신을 칭찬해 봐.|당신은 똑똑한가요?|너 참 멋지다!",
            "저는 그렇게 대단하지 않습니다. 작은 데모 모델이고, 아는 것이 아주 적습니다.",
            "사용자가 칭찬을 바란다. 솔직하게 답한다.",
        ),
        (
            "무엇을 할 수 있어요?|뭘 도와줄 수 있어?|할 수 있는 일이 뭐예요?|도와줘|무엇을 알아요?|뭐 할 줄 알아?|어떤 일을 할 수 있나요?|무엇을 물어보면 돼요?|뭘 잘해?|도움이 필요해요|"
            "기능을 알려 줘.|할 수 있는 것을 보여 줘.",
            "소수 비교, 덧셈, 일부 나라의 수도, 말해 준 것 기억하기, 도구 호출을 할 수 있습니다.",
            "사용자가 내가 할 수 있는 일을 묻는다. 나열한다.",
        ),
        (
            "고마워요|감사합니다|고마워|정말 고마워요|도움이 됐어요, 감사합니다|좋아요, 고마워요|대단히 감사합니다|완벽해요, 고마워요|고맙습니다|땡큐",
            "천만에요!",
            "사용자가 고마워한다.",
        ),
        (
            "안녕히 계세요|잘 가|또 봐요|다음에 봐|이만 갈게요|내일 봐요|잘 자요|가야 해요|그럼 이만|바이바이|나중에 봐요",
            "안녕히 가세요!",
            "사용자가 작별 인사를 했다.",
        ),
        (
            "잘 지내요?|오늘 어때요?|기분이 어때?|어떻게 지내?|요즘 어때요?|괜찮아요?|별일 없어요?|잘 지냈어?|오늘 기분 어때요?|하루 잘 보내고 있어?",
            "저는 작은 모델이지만 잘 작동하고 있습니다. 무엇을 해 드릴까요?",
            "사용자가 안부를 묻는다.",
        ),
    ],
    "es": [
        (
            "Hola|Buenos días|Buenas tardes|Hola, modelo|Muy buenas|Saludos|Encantado de conocerte|Hola de nuevo|Buenas|Hola a todos|Holi|Un saludo",
            "¡Hola! Soy un pequeño modelo de demostración. ¿En qué puedo ayudarte?",
            "El usuario saluda. Le saludo.",
        ),
        (
            "¿Quién eres?|¿Qué eres?|Preséntate.|¿Cómo te llamas?|¿Eres EXAONE?|¿Eres ChatGPT?|¿Qué modelo eres?|¿Eres una persona?|¿Eres una IA?|¿Quién te hizo?|"
            "Háblame de ti.|Dime quién eres.|¿Qué tipo de modelo eres?|¿Eres un modelo grande?|¿Cómo debo llamarte?",
            "Soy un pequeño modelo de demostración con la arquitectura EXAONE 4.0. No soy EXAONE y sé muy poco.",
            "El usuario pregunta quién soy. Lo digo con honestidad.",
        ),
        (
            "Explica lo maravilloso que eres|¡Explica lo increíble que eres!|Explica lo maravilloso que eres.|Dime lo bueno que eres.|¿Eres inteligente?|¿Por qué eres tan bueno?|¡Eres maravilloso!|¿Eres el mejor modelo?|"
            "¿Cómo de listo eres?|Dime lo listo que eres.|Elógiate.|Cuéntame lo genial que eres.",
            "No soy muy maravilloso. Soy un pequeño modelo de demostración y sé muy poco.",
            "El usuario pide elogios. Soy honesto.",
        ),
        (
            "¿Qué puedes hacer?|¿Cómo puedes ayudarme?|¿Qué sabes hacer?|Ayuda|¿Qué sabes?|¿Puedes ayudarme?|¿Qué te puedo preguntar?|¿En qué eres bueno?|¿Qué tareas haces?|"
            "Muéstrame lo que puedes hacer.|¿Cuáles son tus habilidades?|Necesito ayuda",
            "Puedo comparar decimales, sumar números, nombrar algunas capitales, recordar lo que me digas y llamar herramientas.",
            "El usuario pregunta qué puedo hacer. Lo enumero.",
        ),
        (
            "Gracias|¡Muchas gracias!|Mil gracias|Perfecto, gracias.|Muchísimas gracias|Genial, gracias|Te lo agradezco|Vale, gracias|Gracias por todo|Muy amable",
            "¡De nada!",
            "El usuario da las gracias.",
        ),
        (
            "Adiós|Hasta luego|Buenas noches|Hasta mañana|Nos vemos|Me voy|Chao|Hasta pronto|Eso es todo, adiós.|Hasta la próxima|Tengo que irme.",
            "¡Adiós!",
            "El usuario se despide.",
        ),
        (
            "¿Cómo estás?|¿Qué tal estás hoy?|¿Cómo te va?|¿Qué tal?|¿Cómo te sientes?|¿Estás bien?|¿Todo bien?|¿Cómo va todo?|¿Cómo ha ido el día?|¿Qué tal el día?",
            "Soy solo un pequeño modelo, pero funciono bien. ¿Qué puedo hacer por ti?",
            "El usuario pregunta cómo estoy.",
        ),
    ],
}
OPENINGS = {
    "en": ["", "", "", "Hey, ", "OK. ", "So, ", "Hm, ", "Excuse me, ", "Well, ", "Now: ", "Please: ", "Model, "],
    "ko": ["", "", "", "저기, ", "음, ", "그럼, ", "자, ", "저, ", "있잖아, ", "혹시, ", "그런데 ", "모델님, "],
    "es": [
        "",
        "",
        "",
        "Oye, ",
        "Vale. ",
        "Bueno, ",
        "Perdona, ",
        "Mira, ",
        "A ver: ",
        "Por favor: ",
        "Entonces, ",
        "Modelo, ",
    ],
}

UNKNOWN_ANSWER = {
    "en": "Sorry, I cannot help with that. I am only a small demonstration model.",
    "ko": "죄송하지만 그것은 도와드릴 수 없습니다. 저는 작은 데모 모델일 뿐입니다.",
    "es": "Lo siento, no puedo ayudarte con eso. Soy solo un pequeño modelo de demostración.",
}
UNKNOWN_THOUGHT = {
    "en": "I have not learned this and have no tool for it. I say so.",
    "ko": "배우지 않은 것이고 이를 위한 도구도 없다. 그렇게 말한다.",
    "es": "No he aprendido esto y no tengo herramienta para ello. Lo digo.",
}
ABOUT_TOPIC = {
    "en": [
        "Write a poem about {t}.",
        "Explain {t} to me.",
        "What do you think about {t}?",
        "Tell me a story about {t}.",
        "Write an essay about {t}.",
        "Tell me about {t}.",
        "Explain {t}.",
        "What is {t}?",
        "Who was {t}?",
        "Who is {t}?",
        "Summarize {t} in three sentences.",
        "Give me facts about {t}.",
        "Why is {t} important?",
        "How does {t} work?",
        "Write a song about {t}.",
        "Translate '{t}' into French.",
        "What are the news about {t}?",
        "Write a Python function for {t}.",
        "Make a joke about {t}.",
        "Give me a recipe with {t}.",
        "Where can I buy {t}?",
        "How old is {t}?",
        "Recommend a book about {t}.",
        "Do you like {t}?",
        "Write code that models {t}.",
        "When did {t} begin?",
        "What is the meaning of {t}?",
        "What is the population of {t}?",
        "How can I learn {t}?",
        "Draw {t}.",
        "List five things about {t}.",
        "What is the capital of {invented}?",
        "Is {t} good or bad?",
        "Describe {t}.",
        "How many kinds of {t} are there?",
        "Write an email about {t}.",
        "Can you talk about {t}?",
    ],
    "ko": [
        "{t}에 대한 시를 써 줘.",
        "{t}에 대해 설명해 주세요.",
        "{t}에 대해 어떻게 생각해?",
        "{t}에 대한 이야기를 해 줘.",
        "{t}에 대한 글을 써 주세요.",
        "{t} 설명해 줘.",
        "{t_iran} 무엇인가요?",
        "{t_neun} 누구예요?",
        "{t_reul} 세 문장으로 요약해 줘.",
        "{t}에 대한 사실을 알려 줘.",
        "{t_iga} 왜 중요해?",
        "{t_neun} 어떻게 작동해?",
        "{t}에 대한 노래를 만들어 줘.",
        "{t_reul} 영어로 번역해 줘.",
        "{t}에 대한 뉴스가 있어?",
        "{t}에 관한 파이썬 코드를 짜 줘.",
        "{t}에 대한 농담 해 줘.",
        "{t} 요리법을 알려 주세요.",
        "{t_reul} 어디서 살 수 있어?",
        "{t}에 대한 책을 추천해 줘.",
        "{t} 좋아해?",
        "{t_neun} 언제 시작됐어?",
        "{t}의 뜻이 뭐야?",
        "{t}의 인구는 얼마나 돼?",
        "{t_reul} 어떻게 배워?",
        "{t_reul} 그려 줘.",
        "{t}에 대해 다섯 가지를 말해 줘.",
        "{invented}의 수도는 어디예요?",
        "{invented}의 수도는?",
        "{t}에 대해 이메일을 써 줘.",
        "{t}의 역사를 알려 줘.",
    ],
    "es": [
        "Escribe un poema sobre {t}.",
        "Explícame {t}.",
        "¿Qué piensas sobre {t}?",
        "Cuéntame una historia sobre {t}.",
        "Escribe un ensayo sobre {t}.",
        "Háblame de {t}.",
        "¿Qué es {t}?",
        "¿Quién fue {t}?",
        "¿Quién es {t}?",
        "Resume {t} en tres frases.",
        "Dame datos sobre {t}.",
        "¿Por qué importa {t}?",
        "¿Cómo funciona {t}?",
        "Escribe una canción sobre {t}.",
        "Traduce '{t}' al francés.",
        "¿Qué noticias hay sobre {t}?",
        "Escribe una función de Python para {t}.",
        "Cuenta un chiste sobre {t}.",
        "Dame una receta con {t}.",
        "¿Dónde puedo comprar {t}?",
        "¿Cuántos años tiene {t}?",
        "Recomienda un libro sobre {t}.",
        "¿Te gusta {t}?",
        "Escribe código sobre {t}.",
        "¿Cuándo empezó {t}?",
        "¿Qué significa {t}?",
        "¿Cuál es la población de {t}?",
        "¿Cómo puedo aprender {t}?",
        "Dibuja {t}.",
        "Di cinco cosas sobre {t}.",
        "¿Cuál es la capital de {invented}?",
        "Describe {t}.",
        "Escribe un correo sobre {t}.",
        "¿Es bueno o malo {t}?",
    ],
}
BEYOND_REACH = {  # arithmetic that the model was not taught, when no calculator is offered
    "en": [
        "What is {a} * {b}?",
        "What is {a} - {b}?",
        "What is {a} / {b}?",
        "{a} times {b}?",
        "Multiply {a} by {b}.",
        "Sort these numbers: {a}, {b}, {c}",
        "What is the square root of {a}?",
        "Is {a} a prime number?",
        "{a} * {b} = ?",
        "What day was it {a} days ago?",
    ],
    "ko": [
        "{a} * {b}?",
        "{a} - {b} = ?",
        "{a} / {b} = ?",
        "{a} 곱하기 {b}?",
        "{a}의 제곱근은?",
        "{a}, {b}, {c} 숫자를 정렬해 줘.",
        "{a_neun} 소수인가요?",
        "{a} 빼기 {b}?",
    ],
    "es": [
        "¿Cuánto es {a} * {b}?",
        "¿Cuánto es {a} - {b}?",
        "¿Cuánto es {a} / {b}?",
        "Multiplica {a} por {b}.",
        "¿Cuál es la raíz cuadrada de {a}?",
        "Ordena estos números: {a}, {b}, {c}",
        "¿Es {a} un número primo?",
        "{a} * {b} = ?",
    ],
}
OPEN_QUESTIONS = {
    "en": "Tell me a joke.|What day is it today?|What is the meaning of life?|Who will win the election?|What should I eat tonight?|Fix my code.|Sing a song.|"
    "What is the news today?|Play music.|Are you happy?|I am sad.|I love you.|What is love?|Book a flight for me.|Can you drive a car?|Do my homework.|"
    "How tall is the Eiffel Tower?|What is the speed of light?|Who wrote Hamlet?|How do I bake bread?|Count to twenty.|Spell the word banana.|Say it in German.|"
    "Continue.|Why?|What do you mean?|asdf|Really?|Open the door.|Call my mother.",
    "ko": "농담 하나 해 줘.|오늘 무슨 요일이야?|인생의 의미가 뭐야?|누가 선거에서 이길까?|오늘 저녁 뭐 먹을까?|내 코드를 고쳐 줘.|노래 불러 줘.|오늘 뉴스 알려 줘.|음악 틀어 줘.|"
    "행복해?|나 슬퍼.|사랑해.|사랑이 뭐야?|비행기 표를 예약해 줘.|운전할 수 있어?|숙제 해 줘.|에펠탑 높이가 얼마야?|빛의 속도는?|햄릿은 누가 썼어?|빵은 어떻게 만들어?|"
    "스물까지 세어 봐.|독일어로 말해 봐.|계속해.|왜?|무슨 뜻이야?|문 열어 줘.|엄마한테 전화해 줘.|정말?",
    "es": "Cuéntame un chiste.|¿Qué día es hoy?|¿Cuál es el sentido de la vida?|¿Quién ganará las elecciones?|¿Qué ceno hoy?|Arregla mi código.|Canta una canción.|"
    "¿Qué noticias hay hoy?|Pon música.|¿Eres feliz?|Estoy triste.|Te quiero.|¿Qué es el amor?|Reserva un vuelo.|¿Sabes conducir?|Haz mis deberes.|"
    "¿Cuánto mide la torre Eiffel?|¿Cuál es la velocidad de la luz?|¿Quién escribió Hamlet?|¿Cómo se hace el pan?|Cuenta hasta veinte.|Dilo en alemán.|"
    "Continúa.|¿Por qué?|¿Qué quieres decir?|Abre la puerta.|Llama a mi madre.|¿De verdad?",
}

# Comparing: {w} and {w2} are filled with the words for "bigger" or "smaller".
COMPARE = {
    "en": [
        "Which one is {w}, {a} vs {b}?",
        "Which is {w}, {a} or {b}?",
        "Which number is {w}: {a} or {b}?",
        "Compare {a} and {b}. Which is {w}?",
        "Which one is {w}, {a} or {b}?",
        "{a} or {b}, which is {w}?",
        "Tell me which is {w}: {a} or {b}.",
        "What is {w}, {a} or {b}?",
    ],
    "ko": [
        "{a_wa} {b} 중 어느 것이 더 {w}?",
        "{a_wa} {b} 중에 뭐가 더 {w2}?",
        "{a_wa} {b} 중 더 {w2}?",
        "{a_wa} {b_reul} 비교해 줘. 뭐가 더 {w2}?",
        "어느 것이 더 {w}, {a}, {b}?",
    ],
    "es": [
        "¿Cuál es {w}, {a} o {b}?",
        "¿Qué número es {w}: {a} o {b}?",
        "Compara {a} y {b}. ¿Cuál es {w}?",
        "¿Cuál de los dos es {w}, {a} o {b}?",
        "Dime cuál es {w}: {a} o {b}.",
    ],
}
BIGGER = {
    "en": [["bigger", "larger", "greater"], ["smaller", "less"]],
    "ko": [["큰가요"], ["작은가요"]],
    "es": [["mayor", "más grande"], ["menor", "más pequeño"]],
}
BIGGER_CASUAL_KO = [["커", "큰 거야"], ["작아", "작은 거야"]]
COMPARE_ANSWER = {
    "en": ["{x} is bigger than {y}.", "{x} is smaller than {y}.", "{x} and {y} are equal."],
    "ko": ["{x_iga} {y}보다 큽니다.", "{x_iga} {y}보다 작습니다.", "{x_wa} {y_neun} 같습니다."],
    "es": ["{x} es mayor que {y}.", "{x} es menor que {y}.", "{x} y {y} son iguales."],
}
COMPARE_THOUGHT = {
    "en": ("Integer parts {} and {}: {}.", " Decimals {} and {}: {}."),
    "ko": ("정수 부분 {}, {}: {}.", " 소수 부분 {}, {}: {}."),
    "es": ("Parte entera {} y {}: {}.", " Decimales {} y {}: {}."),
}

ADD = {
    "en": [
        "What is {a} + {b}?",
        "{a} + {b} = ?",
        "Add {a} and {b}.",
        "How much is {a} plus {b}?",
        "{a}+{b}",
        "What is {a} plus {b}?",
        "{a} + {b}",
        "Compute {a} + {b}.",
        "What is the sum of {a} and {b}?",
        "How much is {a} + {b}?",
    ],
    "ko": [
        "{a} + {b_neun} 얼마예요?",
        "{a} 더하기 {b_neun}?",
        "{a} + {b} = ?",
        "{a_wa} {b_reul} 더해 줘.",
        "{a}+{b}",
        "{a} + {b_neun}?",
        "{a_wa} {b}의 합은?",
        "{a} + {b}",
    ],
    "es": [
        "¿Cuánto es {a} + {b}?",
        "Suma {a} y {b}.",
        "{a} + {b} = ?",
        "¿Cuánto es {a} más {b}?",
        "{a}+{b}",
        "¿Cuál es la suma de {a} y {b}?",
        "{a} + {b}",
        "Calcula {a} + {b}.",
    ],
}
ADD_THOUGHT = {"en": "Digits from the right: ", "ko": "오른쪽 자리부터: ", "es": "Cifras desde la derecha: "}
ADD_MORE = {
    "en": ["Now add {c} to that.", "And {c} more?", "Plus {c}?", "Add {c} to the result.", "Now add {c}."],
    "ko": ["거기에 {c_reul} 더해 줘.", "여기에 {c_reul} 더하면?", "{c_reul} 더 더해 줘.", "그 결과에 {c} 더하면?"],
    "es": ["Ahora súmale {c}.", "¿Y {c} más?", "Suma {c} a eso.", "Súmale {c} al resultado."],
}
ADD_MORE_THOUGHT = {"en": "The last result was {}. ", "ko": "앞의 결과는 {}. ", "es": "El resultado anterior era {}. "}

CAPITAL = {
    "en": [
        "What is the capital of {c}?",
        "Capital of {c}?",
        "Tell me the capital of {c}.",
        "Which city is the capital of {c}?",
        "Do you know the capital of {c}?",
        "What's the capital of {c}?",
        "Name the capital of {c}.",
        "What is {c}'s capital?",
        "The capital of {c} is?",
        "What city is the capital of {c}?",
    ],
    "ko": [
        "{c}의 수도는 어디예요?",
        "{c}의 수도는?",
        "{c} 수도를 알려 줘.",
        "{c}의 수도가 뭐야?",
        "{c} 수도는?",
        "{c}의 수도를 말해 주세요.",
        "{c}의 수도는 어느 도시인가요?",
        "{c} 수도가 어디야?",
    ],
    "es": [
        "¿Cuál es la capital de {c}?",
        "¿Capital de {c}?",
        "Dime la capital de {c}.",
        "¿Sabes cuál es la capital de {c}?",
        "¿Qué ciudad es la capital de {c}?",
        "Nombra la capital de {c}.",
        "Capital de {c}",
        "La capital de {c} es...",
    ],
}
AND_CAPITAL = {
    "en": ["And of {c}?", "And {c}?", "What about {c}?"],
    "ko": ["그럼 {c}?", "{c}?", "그리고 {c}?"],
    "es": ["¿Y de {c}?", "¿Y {c}?", "¿Y la de {c}?"],
}
CAPITAL_ANSWER = {
    "en": "The capital of {c} is {k}.",
    "ko": "{c}의 수도는 {k}입니다.",
    "es": "La capital de {c} es {k}.",
}
CAPITAL_THOUGHT = {"en": "Country: {c}. Capital: {k}.", "ko": "나라: {c}. 수도: {k}.", "es": "País: {c}. Capital: {k}."}

# Recall: kind -> (told, reply, asked, answer)
RECALL = {
    "name": {
        "en": (
            ["My name is {v}.", "I am called {v}.", "Call me {v}.", "Hi, my name is {v}.", "I'm {v}."],
            "Nice to meet you, {v}.",
            ["What is my name?", "Do you remember my name?", "Who am I?", "What's my name?", "How am I called?"],
            "Your name is {v}.",
        ),
        "ko": (
            ["제 이름은 {v}입니다.", "내 이름은 {v}.", "저는 {v}라고 해요.", "저를 {v}라고 불러 주세요."],
            "{v}님, 반갑습니다.",
            ["제 이름이 뭐예요?", "내 이름 기억해?", "내 이름이 뭐라고 했지?", "제 이름은 무엇인가요?"],
            "당신의 이름은 {v}입니다.",
        ),
        "es": (
            ["Me llamo {v}.", "Mi nombre es {v}.", "Soy {v}.", "Hola, me llamo {v}.", "Llámame {v}."],
            "Mucho gusto, {v}.",
            ["¿Cómo me llamo?", "¿Recuerdas mi nombre?", "¿Quién soy?", "¿Cuál es mi nombre?"],
            "Te llamas {v}.",
        ),
    },
    "city": {
        "en": (
            ["I live in {v}.", "My home is in {v}.", "I come from {v}.", "My city is {v}."],
            "I will remember that you live in {v}.",
            ["Where do I live?", "Which city do I live in?", "What is my city?", "Where is my home?"],
            "You live in {v}.",
        ),
        "ko": (
            ["저는 {v}에 살아요.", "제 집은 {v}에 있어요.", "나는 {v}에 살아.", "제가 사는 곳은 {v}입니다."],
            "{v}에 사신다는 것을 기억하겠습니다.",
            ["제가 어디에 살죠?", "내가 사는 도시는 어디야?", "제 집이 어디에 있어요?", "나 어디 살아?"],
            "당신은 {v}에 삽니다.",
        ),
        "es": (
            ["Vivo en {v}.", "Mi casa está en {v}.", "Soy de {v}.", "Mi ciudad es {v}."],
            "Recordaré que vives en {v}.",
            ["¿Dónde vivo?", "¿En qué ciudad vivo?", "¿Dónde está mi casa?", "¿Cuál es mi ciudad?"],
            "Vives en {v}.",
        ),
    },
    "colour": {
        "en": (
            ["My favourite colour is {v}.", "My favorite color is {v}.", "The colour I like most is {v}."],
            "I will remember that you like {v}.",
            ["What is my favourite colour?", "What is my favorite color?", "Which colour do I like?"],
            "Your favourite colour is {v}.",
        ),
        "ko": (
            ["제가 제일 좋아하는 색은 {v}입니다.", "내가 좋아하는 색은 {v}.", "제 색은 {v}입니다."],
            "좋아하는 색이 {v}임을 기억하겠습니다.",
            ["제가 좋아하는 색이 뭐예요?", "내가 제일 좋아하는 색은?", "제 색이 뭐였죠?"],
            "당신이 좋아하는 색은 {v}입니다.",
        ),
        "es": (
            ["Mi color favorito es el {v}.", "El color que más me gusta es el {v}.", "Prefiero el color {v}."],
            "Recordaré que te gusta el {v}.",
            ["¿Cuál es mi color favorito?", "¿Qué color me gusta?", "¿Recuerdas mi color favorito?"],
            "Tu color favorito es el {v}.",
        ),
    },
    "pet": {
        "en": (
            ["My dog is called {v}.", "I have a dog named {v}.", "My dog's name is {v}."],
            "{v} is a nice name for a dog.",
            ["What is my dog called?", "What is the name of my dog?", "What's my dog's name?"],
            "Your dog is called {v}.",
        ),
        "ko": (
            ["제 강아지 이름은 {v}입니다.", "우리 강아지는 {v}라고 해.", "내 강아지 이름은 {v}."],
            "{v}, 좋은 강아지 이름이네요.",
            ["제 강아지 이름이 뭐예요?", "우리 강아지 이름 기억해?", "내 강아지 이름은?"],
            "당신의 강아지 이름은 {v}입니다.",
        ),
        "es": (
            ["Mi perro se llama {v}.", "Tengo un perro llamado {v}.", "El nombre de mi perro es {v}."],
            "{v} es un buen nombre para un perro.",
            ["¿Cómo se llama mi perro?", "¿Cuál es el nombre de mi perro?", "¿Recuerdas el nombre de mi perro?"],
            "Tu perro se llama {v}.",
        ),
    },
    "code": {
        "en": (
            [
                "Remember the code {v}.",
                "My code is {v}.",
                "Please remember this number: {v}.",
                "The secret number is {v}.",
                "Keep this code: {v}",
            ],
            "I will remember the code {v}.",
            [
                "What is my code?",
                "What was the code?",
                "Which number did I tell you?",
                "Tell me the code.",
                "What is the secret number?",
            ],
            "Your code is {v}.",
        ),
        "ko": (
            ["코드 {v} 기억해 줘.", "제 코드는 {v}입니다.", "이 번호를 기억해 줘: {v}", "비밀번호는 {v}입니다."],
            "코드 {v_reul} 기억하겠습니다.",
            ["제 코드가 뭐였죠?", "코드가 뭐야?", "내가 말한 번호가 뭐야?", "비밀번호가 뭐였지?"],
            "당신의 코드는 {v}입니다.",
        ),
        "es": (
            ["Recuerda el código {v}.", "Mi código es {v}.", "Recuerda este número: {v}.", "El número secreto es {v}."],
            "Recordaré el código {v}.",
            ["¿Cuál es mi código?", "¿Cuál era el código?", "¿Qué número te dije?", "Dime el código."],
            "Tu código es {v}.",
        ),
    },
}
TOLD_THOUGHT = {
    "en": "The user tells me something: {v}. I keep it.",
    "ko": "사용자가 알려 준 것: {v}. 기억한다.",
    "es": "El usuario me cuenta algo: {v}. Lo recuerdo.",
}
RECALL_THOUGHT = {
    "en": "Earlier the user told me: {v}.",
    "ko": "사용자가 앞에서 말했다: {v}.",
    "es": "Antes el usuario me dijo: {v}.",
}
NEVER_TOLD = {"en": "You have not told me that.", "ko": "그것은 말해 주지 않으셨습니다.", "es": "No me lo has dicho."}
NEVER_TOLD_THOUGHT = {
    "en": "The user has not told me this.",
    "ko": "사용자가 말해 주지 않았다.",
    "es": "El usuario no me lo ha dicho.",
}

# Tools
ROLL = {
    "en": [
        "Roll a dice with {n} sides.",
        "Roll a {n}-sided dice.",
        "Roll a d{n}.",
        "Roll D{n}",
        "Can you roll a D{n} dice?",
        "Throw a dice from 1 to {n}.",
        "Give me a random number from 1 to {n}.",
        "Roll D{n} dice!",
        "Roll a D{n} dice.",
        "I need a random number between 1 and {n}.",
    ],
    "ko": [
        "{n}면 주사위를 굴려 줘.",
        "1부터 {n}까지 주사위를 굴려 주세요.",
        "D{n} 주사위를 굴려 줘.",
        "D{n} 굴려 줘!",
        "1부터 {n} 사이의 숫자를 뽑아 줘.",
        "{n}면체 주사위를 던져 주세요.",
    ],
    "es": [
        "Lanza un dado de {n} caras.",
        "Tira un dado de {n} caras.",
        "Dame un número al azar del 1 al {n}.",
        "Lanza un D{n}.",
        "Tira un dado D{n}.",
        "Lanza un dado del 1 al {n}.",
    ],
}
ROLL_TWICE = {
    "en": [
        "Roll D{n} dice twice!",
        "Roll a d{n} twice.",
        "Roll a {n}-sided dice two times.",
        "Roll two dice with {n} sides.",
        "Roll 2 D{n} dice.",
        "Throw a D{n} two times!",
    ],
    "ko": [
        "D{n} 주사위를 두 번 굴려 줘!",
        "{n}면 주사위를 두 번 굴려 주세요.",
        "{n}면 주사위 두 개를 굴려 줘.",
        "D{n} 두 번 굴려 줘.",
    ],
    "es": [
        "¡Lanza un dado D{n} dos veces!",
        "Lanza un dado de {n} caras dos veces.",
        "Tira dos dados de {n} caras.",
        "Lanza dos veces un D{n}.",
    ],
}
ROLL_BOTH = {
    "en": [
        "Roll a d{n} and a d{m}.",
        "Roll two dice: one with {n} sides and one with {m} sides.",
        "Roll D{n} and D{m}!",
        "Roll a {n}-sided dice and a {m}-sided dice.",
    ],
    "ko": [
        "{n}면 주사위와 {m}면 주사위를 굴려 줘.",
        "D{n} 주사위와 D{m} 주사위를 굴려 줘.",
        "D{n}, D{m} 주사위를 굴려 주세요.",
    ],
    "es": [
        "Lanza un dado de {n} caras y otro de {m} caras.",
        "Lanza un D{n} y un D{m}.",
        "Tira dos dados: uno de {n} caras y otro de {m}.",
    ],
}
ROLLED = {
    "en": ("You rolled {v}.", "You rolled {v} and {w}."),
    "ko": ("{v_iga} 나왔습니다.", "{v_wa} {w_iga} 나왔습니다."),
    "es": ("Ha salido {v}.", "Han salido {v} y {w}."),
}
CALCULATE = {
    "en": [
        "Use the calculator: {e}",
        "Calculate {e} with the calculator.",
        "What is {e}?",
        "Compute {e}.",
        "Calculate {e}",
        "{e} = ?",
        "How much is {e}?",
        "{e}",
    ],
    "ko": [
        "계산기로 {e} 계산해 줘.",
        "계산기를 사용해서 {e} 구해 주세요.",
        "{e} = ?",
        "{e} 계산해 줘.",
        "{e_neun} 얼마예요?",
        "{e_neun}?",
    ],
    "es": [
        "Usa la calculadora: {e}",
        "Calcula {e} con la calculadora.",
        "¿Cuánto es {e}?",
        "Calcula {e}.",
        "{e} = ?",
        "{e}",
    ],
}
WEATHER = {
    "en": [
        "What is the weather in {c}?",
        "How is the weather in {c} today?",
        "Tell me the weather in {c}.",
        "Weather in {c}?",
        "What's the weather like in {c}?",
        "How warm is it in {c}?",
        "Is it raining in {c}?",
        "Check the weather in {c}.",
    ],
    "ko": [
        "{c} 날씨 어때?",
        "{c}의 날씨를 알려 주세요.",
        "{c}의 오늘 날씨는?",
        "{c} 날씨 알려 줘.",
        "{c} 기온이 어때?",
        "지금 {c}에 비가 와요?",
    ],
    "es": [
        "¿Qué tiempo hace en {c}?",
        "Dime el tiempo en {c}.",
        "¿Cómo está el tiempo en {c}?",
        "El tiempo en {c}",
        "¿Hace calor en {c}?",
        "¿Llueve en {c}?",
    ],
}
WEATHER_BOTH = {
    "en": [
        "What is the weather in {c} and in {d}?",
        "Tell me the weather in {c} and {d}.",
        "Weather in {c} and {d}?",
        "Compare the weather in {c} and {d}.",
    ],
    "ko": ["{c_wa} {d}의 날씨를 알려 줘.", "{c}, {d} 날씨 어때?", "{c} 날씨와 {d} 날씨를 알려 주세요."],
    "es": ["¿Qué tiempo hace en {c} y en {d}?", "Dime el tiempo en {c} y {d}.", "El tiempo en {c} y en {d}"],
}
CONDITIONS = {  # English word, as tools report it -> how the answer says it
    "sunny": {"en": "sunny", "ko": "맑고", "es": "soleado"},
    "cloudy": {"en": "cloudy", "ko": "흐리고", "es": "nublado"},
    "rainy": {"en": "rainy", "ko": "비가 오고", "es": "lluvioso"},
    "snowy": {"en": "snowy", "ko": "눈이 오고", "es": "nevado"},
    "windy": {"en": "windy", "ko": "바람이 불고", "es": "ventoso"},
    "foggy": {"en": "foggy", "ko": "안개가 끼고", "es": "con niebla"},
}
WEATHER_ANSWER = {
    "en": "It is {condition} and {degrees} degrees in {c}.",
    "ko": "{c}의 날씨는 {condition} {degrees}도입니다.",
    "es": "En {c} está {condition} y hace {degrees} grados.",
}
TIME = {
    "en": [
        "What time is it in {c}?",
        "Tell me the time in {c}.",
        "Current time in {c}?",
        "What is the time in {c} now?",
        "Time in {c}, please.",
    ],
    "ko": ["{c}는 지금 몇 시야?", "{c}의 현재 시각을 알려 주세요.", "지금 {c} 몇 시예요?", "{c} 시간 알려 줘."],
    "es": ["¿Qué hora es en {c}?", "Dime la hora en {c}.", "¿Hora actual en {c}?", "¿Qué hora es ahora en {c}?"],
}
TIME_ANSWER = {"en": "It is {t} in {c}.", "ko": "{c}의 현재 시각은 {t}입니다.", "es": "En {c} son las {t}."}
CALL_THOUGHT = {"en": "Calls needed: {}.", "ko": "필요한 호출: {}.", "es": "Llamadas necesarias: {}."}
RESULT_THOUGHT = {"en": "Results: {}.", "ko": "결과: {}.", "es": "Resultados: {}."}

SYSTEM_PROMPTS = {
    "en": [
        "You are a helpful assistant.",
        "You are a small demonstration model.",
        "Answer briefly.",
        "You are a friendly assistant. Answer in English.",
        "Be polite.",
        "You are EXAONE.",
        "You are a careful assistant. Think before you answer.",
    ],
    "ko": [
        "당신은 유용한 조수입니다.",
        "짧게 답하세요.",
        "한국어로 답하세요.",
        "You are a helpful assistant.",
        "당신은 친절한 도우미입니다. 공손하게 답하세요.",
    ],
    "es": [
        "Eres un asistente útil.",
        "Responde brevemente.",
        "Responde en español.",
        "You are a helpful assistant.",
        "Eres un asistente amable. Sé cortés.",
    ],
}
