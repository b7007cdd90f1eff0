"""Tasks -> dialogues: what the demo model is trained and tested on.

A dialogue is a list of chat messages in one language, with the tools it offers and its system
prompt. Assistant messages carry their thought as `reasoning_content`. Every value in a dialogue
(a pair of numbers, a name, a city, a wording) is drawn on one side of a split by its hash, so that
nothing the test asks about was ever in training.
"""

import hashlib
import json
from dataclasses import dataclass, field
from random import Random

import facts
import phrases
import tools as toolbox

LANGUAGE_SHARES = (0.40, 0.32, 0.28)  # English, Korean, Spanish
TASK_SHARES = {"greet": 5, "unknown": 5, "compare": 22, "add": 14, "follow": 4, "capital": 5, "recall": 20, "tool": 17}
FILLERS = ("compare", "add", "capital", "greet", "unknown", "capital", "follow")
TEST_PART = 12  # one value in so many is held out


def split_of(kind, value):
    """'test' for one value in TEST_PART, by its hash, and 'train' for the others."""
    digest = hashlib.md5(f"exaone4-demo {kind} {value!r}".encode()).hexdigest()
    return "test" if int(digest[:8], 16) % TEST_PART == 0 else "train"


@dataclass
class Dialogue:
    """A conversation: `turns` are chat messages, `tools` JSON schemas by name."""

    task: str
    lang: str
    turns: list
    tools: dict = field(default_factory=dict)
    system: str = ""


@dataclass
class Speaker:
    """Draws values and wordings of one language from one side of the split."""

    rng: Random
    lang: str
    split: str

    def draw(self, kind, make):
        """A value from `make(rng, lang)` that belongs to this side of the split."""
        while True:
            value = make(self.rng, self.lang)
            if split_of(kind, value) == self.split:
                return value

    def ask(self, table, **values):
        """One of the wordings in `table`, filled in, sometimes written carelessly."""
        return fill(careless(self.rng, self.rng.choice(table[self.lang])), **values)

    def say(self, table, **values):
        """The wording of this language, filled in."""
        return fill(table[self.lang], **values)

    def other_language(self):
        """The same speaker, now and then in another language."""
        if self.rng.random() > 0.06:
            return self
        return Speaker(self.rng, self.rng.choice(facts.LANGUAGES), self.split)


def fill(text, **values):
    """`text` with its values; {a_wa} is the value a with the Korean particle that fits."""
    for key, value in values.items():
        for name, (closed, opened) in JOSA.items():
            if f"{{{key}_{name}}}" in text:
                text = text.replace(f"{{{key}_{name}}}", facts.josa(str(value), closed, opened))
        text = text.replace(f"{{{key}}}", str(value))
    return text


JOSA = {"wa": ("과", "와"), "neun": ("은", "는"), "reul": ("을", "를"), "iga": ("이", "가"), "iran": ("이란", "란")}


def careless(rng, text):
    """The same wording as people type it: no final mark, no capital, no opening mark."""
    if rng.random() < 0.15 and text[-1] in ".?!" and not text.endswith("..."):
        text = text[:-1]
    if rng.random() < 0.12 and text[0] in "¿¡":
        text = text[1:]
    if rng.random() < 0.12 and not text.startswith("{"):
        text = text[0].lower() + text[1:]
    return text


def user(text):
    """A user's message."""
    return {"role": "user", "content": text}


def reply(text, thought):
    """An assistant's message with the thought before it."""
    return {"role": "assistant", "content": text, "reasoning_content": thought}


# One exchange of each plain task: a speaker in, a list of turns out.


def greet(speaker):
    """Small talk, answered honestly. Bare wordings ("Hi") are always trained; those behind an opening are split."""
    rng, intents = speaker.rng, phrases.SMALL_TALK[speaker.lang]

    def wording(rng, lang):
        intent = rng.randrange(len(intents))
        return intent, rng.choice(intents[intent][0].split("|"))

    def with_opening(rng, lang):
        intent, question = wording(rng, lang)
        return intent, rng.choice([opening for opening in phrases.OPENINGS[lang] if opening]) + question

    bare = speaker.split == "train" and rng.random() < 0.4
    intent, question = wording(rng, speaker.lang) if bare else speaker.draw("greet", with_opening)
    return [user(careless(rng, question)), reply(*intents[intent][1:])]


def unknown(speaker):
    """Anything that was not taught: the model says that it cannot help."""
    kind = speaker.rng.random()
    if kind < 0.1:
        question = speaker.draw(
            "open",
            lambda rng, lang: rng.choice(phrases.OPENINGS[lang]) + rng.choice(phrases.OPEN_QUESTIONS[lang].split("|")),
        )
        question = careless(speaker.rng, question)
    elif kind < 0.2:
        numbers = speaker.draw(
            "beyond", lambda rng, lang: [rng.randrange(2, rng.choice((20, 100, 1000))) for _ in range(3)]
        )
        question = speaker.ask(phrases.BEYOND_REACH, **dict(zip("abc", numbers, strict=False)))
    elif kind < 0.35:
        question = REQUESTS[speaker.rng.choice(("roll_dice", "get_weather", "current_time"))](speaker).question
    else:
        topic = speaker.draw("topic", facts.draw_topic)
        invented = speaker.draw("place", facts.invent)
        question = speaker.ask(phrases.ABOUT_TOPIC, t=topic, invented=invented)
    return refusal(speaker, question)


def refusal(speaker, question):
    """The exchange in which the model says that it cannot help."""
    return [user(question), reply(phrases.UNKNOWN_ANSWER[speaker.lang], phrases.UNKNOWN_THOUGHT[speaker.lang])]


def compare(speaker):
    """Which of two decimals is bigger or smaller; the thought compares part by part."""
    a, b = speaker.draw("compare", lambda rng, lang: sorted(two_decimals(rng)))
    if speaker.rng.random() < 0.5:
        a, b = b, a
    sign, thought = compare_by_parts(a, b, speaker.lang)
    smaller = int(speaker.rng.random() < 0.25)
    if sign == "=":
        answer = fill(phrases.COMPARE_ANSWER[speaker.lang][2], x=a, y=b)
    else:
        x, y = (b, a) if (sign == "<") != bool(smaller) else (a, b)
        answer = fill(phrases.COMPARE_ANSWER[speaker.lang][smaller], x=x, y=y)
    word = speaker.rng.choice(phrases.BIGGER[speaker.lang][smaller])
    casual = speaker.rng.choice(phrases.BIGGER_CASUAL_KO[smaller])
    return [user(speaker.ask(phrases.COMPARE, a=a, b=b, w=word, w2=casual)), reply(answer, thought)]


def two_decimals(rng):
    """Two decimals (sometimes whole numbers) as text, mostly with the same whole part and seldom equal in value."""
    whole = rng.randrange(rng.choice((10, 10, 100)))
    other = whole if rng.random() < 0.6 else rng.randrange(rng.choice((10, 100)))
    one, two = ("".join(rng.choices("0123456789", k=rng.choice((1, 1, 2, 2, 2, 3)))) for _ in range(2))
    if rng.random() < 0.05:
        other, two = whole, one + "0"
    if rng.random() < 0.1:
        return [str(whole), str(other if rng.random() < 0.1 else rng.randrange(rng.choice((10, 100, 1000))))]
    return [f"{whole}.{one}", f"{other}.{two}"]


def compare_by_parts(a, b, lang):
    """('<', '=' or '>', the thought): whole parts first, then decimals filled up to one length."""
    (whole_a, _, part_a), (whole_b, _, part_b) = a.partition("."), b.partition(".")
    length = max(len(part_a), len(part_b))
    part_a, part_b = part_a.ljust(length, "0"), part_b.ljust(length, "0")
    wholes, parts = phrases.COMPARE_THOUGHT[lang]
    sign = sign_of(int(whole_a), int(whole_b))
    thought = wholes.format(whole_a, whole_b, sign)
    if sign == "=" and length:
        sign = sign_of(part_a, part_b)
        thought += parts.format(part_a, part_b, sign)
    return sign, thought


def sign_of(a, b):
    """How a stands to b."""
    return "<" if a < b else ">" if a > b else "="


def add(speaker):
    """The sum of two numbers of up to three digits."""
    a, b = speaker.draw(
        "add", lambda rng, lang: sorted(rng.randrange(rng.choice((10, 100, 100, 1000, 1000))) for _ in range(2))
    )
    if speaker.rng.random() < 0.5:
        a, b = b, a
    question = speaker.ask(phrases.ADD, a=a, b=b)
    return [user(question), reply(f"{a} + {b} = {a + b}.", phrases.ADD_THOUGHT[speaker.lang] + digit_by_digit(a, b))]


def digit_by_digit(a, b):
    """The sum written out from the last digit: digit + digit + carry = sum, ..."""
    carry, steps = 0, []
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = (number // 10**place % 10 for number in (a, b))
        steps.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return ", ".join(steps) + "."


def follow(speaker):
    """A sum, and a small number added to its result."""
    a, b, c = speaker.draw(
        "follow",
        lambda rng, lang: [
            rng.randrange(rng.choice((20, 100, 500))),
            rng.randrange(rng.choice((20, 100, 500))),
            rng.randrange(2, rng.choice((10, 10, 50))),
        ],
    )
    total = a + b
    first = [
        user(speaker.ask(phrases.ADD, a=a, b=b)),
        reply(f"{a} + {b} = {total}.", phrases.ADD_THOUGHT[speaker.lang] + digit_by_digit(a, b)),
    ]
    thought = phrases.ADD_MORE_THOUGHT[speaker.lang].format(total) + digit_by_digit(total, c)
    return [*first, user(speaker.ask(phrases.ADD_MORE, c=c)), reply(f"{total} + {c} = {total + c}.", thought)]


def capital(speaker):
    """The capital of a country, and sometimes of a second one."""
    row, wording = speaker.draw(
        "capital", lambda rng, lang: (rng.randrange(len(facts.CAPITALS)), rng.choice(phrases.CAPITAL[lang]))
    )
    country, city = facts.country_and_capital(row, speaker.lang)
    turns = [user(fill(careless(speaker.rng, wording), c=country)), capital_reply(speaker, country, city)]
    if speaker.split == "train" and speaker.rng.random() < 0.3:
        country, city = facts.country_and_capital(speaker.rng.randrange(len(facts.CAPITALS)), speaker.lang)
        turns += [user(speaker.ask(phrases.AND_CAPITAL, c=country)), capital_reply(speaker, country, city)]
    return turns


def capital_reply(speaker, country, city):
    """The answer to a question for a capital."""
    return reply(
        speaker.say(phrases.CAPITAL_ANSWER, c=country, k=city), speaker.say(phrases.CAPITAL_THOUGHT, c=country, k=city)
    )


PLAIN = {"greet": greet, "unknown": unknown, "compare": compare, "add": add, "follow": follow, "capital": capital}


# Recall


def code(rng, lang):
    """A code of four digits."""
    return str(rng.randrange(1000, 10000))


FACT_KINDS = ("city", "code", "colour", "name", "pet")


def draw_fact(speaker, kind):
    """What the user tells. There are too few colours to hold some out."""
    if kind == "colour":
        return speaker.rng.choice(facts.COLOURS[speaker.lang])
    if kind == "city":
        return draw_city(speaker)
    return speaker.draw(f"fact {kind}", {"name": facts.draw_name, "pet": facts.draw_pet, "code": code}[kind])


def draw_city(speaker):
    """A city: listed or invented, or, in training only, one of the capitals, which are too few to hold some out."""
    if speaker.split == "train" and speaker.rng.random() < 0.25:
        return facts.country_and_capital(speaker.rng.randrange(len(facts.CAPITALS)), speaker.lang)[1]
    return speaker.draw("fact city", facts.draw_city)


def recall(speaker, exchanges):
    """Facts told first, then `exchanges` about other things, then questions for the facts."""
    rng = speaker.rng
    kinds = rng.sample(FACT_KINDS, 0 if rng.random() < 0.02 else rng.choice((1, 1, 2, 2, 3)))
    told = {}
    for kind in kinds:
        told[kind] = draw_fact(speaker, kind)
    turns = [turn for kind in kinds for turn in tell(speaker, kind, told[kind])]
    for _ in range(exchanges):
        turns += PLAIN[rng.choice(FILLERS)](speaker.other_language())
    asked = rng.sample(kinds, len(kinds) if speaker.split == "train" else min(1, len(kinds)))
    for kind in asked:
        turns += question_for(speaker, kind, told[kind])
    if not kinds or rng.random() < 0.04:  # ask for something that was never told, last
        never = question_for(speaker, rng.choice([kind for kind in FACT_KINDS if kind not in kinds]), None)
        turns = turns[:-2] + never if asked else turns + never
    return turns


def tell(speaker, kind, value):
    """The user tells a fact."""
    statements, answer, _, _ = phrases.RECALL[kind][speaker.lang]
    statement = fill(careless(speaker.rng, speaker.rng.choice(statements)), v=value)
    return [user(statement), reply(fill(answer, v=value), speaker.say(phrases.TOLD_THOUGHT, v=value))]


def question_for(speaker, kind, value):
    """The user asks for a fact; `value` is None when it was never told."""
    _, _, questions, answer = phrases.RECALL[kind][speaker.lang]
    question = user(careless(speaker.rng, speaker.rng.choice(questions)))
    if value is None:
        return [question, reply(phrases.NEVER_TOLD[speaker.lang], phrases.NEVER_TOLD_THOUGHT[speaker.lang])]
    return [question, reply(fill(answer, v=value), speaker.say(phrases.RECALL_THOUGHT, v=value))]


# Tools


@dataclass
class Request:
    """What a user wants from tools: the question, the calls it needs, what they return, the answer."""

    question: str
    calls: list  # (tool name, argument value)
    results: list
    answer: str
    findings: list  # the part of each result that the answer uses


def result_form(rng, key):
    """How one tool returns its values: as they are, as strings, or in an object under `key`."""
    name = rng.choice((key, "result", "value"))
    return rng.choice((lambda value: value, lambda value: value, str, lambda value: {name: value}))


def ask_dice(speaker):
    """One dice, the same one twice, or two different ones."""
    rng = speaker.rng

    def sides(rng, lang):
        return (
            rng.choice((4, 6, 6, 8, 10, 12, 20, 100))
            if rng.random() < 0.3
            else rng.randrange(2, rng.choice((100, 100, 1000)))
        )

    kind = rng.choice(("one", "one", "twice", "both"))
    n = speaker.draw("dice", sides)
    m = speaker.draw("dice", sides) if kind == "both" else n
    table = {"one": phrases.ROLL, "twice": phrases.ROLL_TWICE, "both": phrases.ROLL_BOTH}[kind]
    rolled = [rng.randint(1, top) for top in ((n,) if kind == "one" else (n, m))]
    form = result_form(rng, "number")
    answer = fill(phrases.ROLLED[speaker.lang][len(rolled) - 1], **dict(zip("vw", rolled, strict=False)))
    return Request(
        speaker.ask(table, n=n, m=m),
        [("roll_dice", top) for top in (n, m)][: len(rolled)],
        [form(value) for value in rolled],
        answer,
        rolled,
    )


def ask_calculator(speaker):
    """An arithmetic expression, copied into the call as the user wrote it."""
    rng = speaker.rng

    def expression(rng, lang):
        sign = rng.choice("+-*/**")
        a, b = rng.randrange(2, rng.choice((100, 1000, 10000))), rng.randrange(2, rng.choice((20, 100, 1000)))
        if sign == "/":
            a = b * rng.randrange(2, 100)
        return f"{a} {sign} {b}" if rng.random() < 0.8 else f"{a}{sign}{b}"

    text = speaker.draw("expression", expression)
    value = eval(text)  # of our own making: two numbers and a sign
    value = int(value) if value == int(value) else value
    return Request(
        speaker.ask(phrases.CALCULATE, e=text),
        [("calculator", text)],
        [result_form(rng, "result")(value)],
        f"{text} = {value}.",
        [value],
    )


def ask_weather(speaker):
    """The weather of one or two cities."""
    rng = speaker.rng
    cities = [draw_city(speaker) for _ in range(rng.choice((1, 1, 2)))]
    reports = [(rng.choice(sorted(phrases.CONDITIONS)), rng.randint(-15, 39)) for _ in cities]
    form = rng.randrange(5)
    answers = [
        speaker.say(
            phrases.WEATHER_ANSWER, condition=phrases.CONDITIONS[condition][speaker.lang], degrees=degrees, c=city
        )
        for city, (condition, degrees) in zip(cities, reports, strict=False)
    ]
    table = phrases.WEATHER if len(cities) == 1 else phrases.WEATHER_BOTH
    return Request(
        speaker.ask(table, **dict(zip("cd", cities, strict=False))),
        [("get_weather", city) for city in cities],
        [weather_result(form, city, *report) for city, report in zip(cities, reports, strict=False)],
        " ".join(answers),
        [f"{condition} {degrees}" for condition, degrees in reports],
    )


def weather_result(form, city, condition, degrees):
    """A weather report in one of the forms that tools use."""
    return (
        {"temperature": degrees, "condition": condition},
        {"condition": condition, "temperature": degrees},
        {"city": city, "temperature": degrees, "condition": condition},
        f"{condition}, {degrees} degrees",
        f"{degrees}°C, {condition}",
    )[form]


def ask_time(speaker):
    """The time in a city."""
    rng = speaker.rng
    city = draw_city(speaker)
    clock = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    result = rng.choice((clock, clock, {"time": clock}, {"city": city, "time": clock}))
    return Request(
        speaker.ask(phrases.TIME, c=city),
        [("current_time", city)],
        [result],
        speaker.say(phrases.TIME_ANSWER, c=city, t=clock),
        [clock],
    )


REQUESTS = {"roll_dice": ask_dice, "calculator": ask_calculator, "get_weather": ask_weather, "current_time": ask_time}


def use_tools(speaker, offered, names):
    """An exchange with calls: question, calls, results, answer. `names`: one or two tools."""
    requests = [request_for(speaker, name, single=len(names) > 1) for name in names]
    calls = [call for request in requests for call in request.calls]
    listing = ", ".join(f"{name}({value})" for name, value in calls)
    findings = ", ".join(str(found) for request in requests for found in request.findings)
    asks = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"function": {"name": name, "arguments": {toolbox.argument_name(offered[name]): value}}}
            for name, value in calls
        ],
        "reasoning_content": phrases.CALL_THOUGHT[speaker.lang].format(listing),
    }
    results = [{"role": "tool", "content": result} for request in requests for result in request.results]
    answer = reply(
        " ".join(request.answer for request in requests), phrases.RESULT_THOUGHT[speaker.lang].format(findings)
    )
    question = (
        " ".join(finished(request.question) for request in requests) if len(requests) > 1 else requests[0].question
    )
    return [user(question), asks, *results, answer]


def request_for(speaker, name, single):
    """A request that needs the tool `name`, with one call only if `single`."""
    while True:
        request = REQUESTS[name](speaker)
        if len(request.calls) == 1 or not single:
            return request


def finished(sentence):
    """The sentence with a mark at its end, so that another can follow."""
    return sentence if sentence[-1] in ".?!" else sentence + "."


def without_tools(speaker, offered):
    """An exchange that needs no tool, or a tool that is not offered."""
    missing = [name for name in toolbox.REAL if name not in offered]
    if missing and speaker.rng.random() < 0.35:
        return missing_tool(speaker, speaker.rng.choice(missing))
    task = speaker.rng.choice(("greet", "capital", "compare", "unknown", "add", "capital"))
    if task == "add" and "calculator" in offered:
        return use_tools(speaker, offered, ["calculator"]) if speaker.split == "train" else capital(speaker)
    if task == "unknown":  # one that no tool could answer
        return refusal(
            speaker,
            speaker.ask(
                phrases.ABOUT_TOPIC,
                t=speaker.draw("topic", facts.draw_topic),
                invented=speaker.draw("place", facts.invent),
            ),
        )
    return PLAIN[task](speaker)


def missing_tool(speaker, name):
    """A request for a tool that is not there. Sums are done by the model itself."""
    if name == "calculator":
        numbers = [speaker.rng.randrange(2, 1000) for _ in range(3)]
        return refusal(speaker, speaker.ask(phrases.BEYOND_REACH, **dict(zip("abc", numbers, strict=False))))
    return refusal(speaker, REQUESTS[name](speaker).question)


def tool_exchange(speaker, offered):
    """An exchange with one of the offered tools, sometimes with two."""
    usable = [name for name in offered if name in toolbox.REAL]
    names = [speaker.rng.choice(usable)]
    if len(usable) > 1 and speaker.rng.random() < 0.1:
        names = speaker.rng.sample(usable, 2)
    return use_tools(speaker, offered, names)


def tool_talk(speaker, last="tool"):
    """(tools, turns). In training, several exchanges share one list of tools: the list is long."""
    rng = speaker.rng
    offered = toolbox.offer(rng)
    turns = []
    for _ in range(rng.choice((1, 2, 3, 4, 5, 6, 7)) if speaker.split == "train" else rng.choice((0, 0, 1))):
        turns += tool_exchange(speaker, offered) if rng.random() < 0.75 else without_tools(speaker, offered)
    turns += tool_exchange(speaker, offered) if last == "tool" else without_tools(speaker, offered)
    return offered, turns


# Whole dialogues


def dialogue(rng, split="train", task=None, lang=None, exchanges=None):
    """One dialogue. `exchanges`: how many stand between telling and asking in `recall`."""
    lang = lang or rng.choices(facts.LANGUAGES, LANGUAGE_SHARES)[0]
    task = task or rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()))[0]
    speaker, offered = Speaker(rng, lang, split), {}
    if task == "tool":
        offered, turns = tool_talk(speaker, "tool" if split == "test" or rng.random() < 0.8 else "none")
    elif task == "no_tool":
        offered, turns = tool_talk(speaker, "none")
    elif task == "recall":
        turns = recall(speaker, recall_distance(rng, split) if exchanges is None else exchanges)
    else:
        turns = PLAIN[task](speaker)
        while split == "train" and rng.random() < 0.35:
            turns += PLAIN[task if rng.random() < 0.5 else rng.choice(FILLERS)](speaker.other_language())
    system = rng.choice(phrases.SYSTEM_PROMPTS[lang]) if rng.random() < 0.12 else ""
    return Dialogue(task, lang, turns, offered, system)


def recall_distance(rng, split):
    """The number of exchanges between telling and asking: few, but in training sometimes 800 to 1,600 tokens' worth."""
    if split == "train" and rng.random() < 0.1:
        return rng.randrange(18, 40)
    return rng.choice((0, 1, 2, 3, 4, 5, 6, 8))


if __name__ == "__main__":
    for name in [*TASK_SHARES, "no_tool"]:
        for language in facts.LANGUAGES:
            example = dialogue(Random(name + language), task=name, lang=language)
            print(json.dumps({"task": name, "turns": example.turns[-4:]}, ensure_ascii=False))
