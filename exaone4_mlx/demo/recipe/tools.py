"""The tools that the dialogues offer, each described in many ways.

Real schemas are generated from Python functions and differ in wording, in key order and in how
they name a type. So every dialogue gets its own variation, and tools that are never called stand
among the others. `REAL` are the four tools that the model can use.
"""

REAL = ("roll_dice", "calculator", "get_weather", "current_time")

# name -> (argument names, argument type, tool descriptions, argument descriptions)
CATALOGUE = {
    "roll_dice": (
        ("max_num",),
        "integer",
        (
            "Roll a dice with the number 1 to N. User can select the number N.",
            "Roll a dice.",
            "Roll one die and return the number.",
            "Returns a random integer between 1 and max_num.",
            "Roll a dice with max_num sides.",
        ),
        (
            "Max number of the dice",
            "Number of sides",
            "The largest number on the dice.",
            "How many sides the dice has.",
        ),
    ),
    "calculator": (
        ("expression",),
        "string",
        (
            "Evaluate an arithmetic expression.",
            "A simple calculator.",
            "Calculate the value of an expression.",
            "Work out an arithmetic expression such as 2 + 3.",
        ),
        (
            "The expression to evaluate",
            "An arithmetic expression.",
            "Expression, for example 12 * 7",
            "What to calculate.",
        ),
    ),
    "get_weather": (
        ("city",),
        "string",
        (
            "Get the current weather of a city.",
            "Weather report for a city.",
            "Return the weather in the given city.",
            "Look up today's weather.",
        ),
        ("Name of the city", "The city.", "City name, e.g. Seoul", "Which city to look up."),
    ),
    "current_time": (
        ("city",),
        "string",
        (
            "Get the current time of a city.",
            "Tell the local time.",
            "Return the time in the given place.",
            "Current local time.",
        ),
        ("Name of the city", "The place.", "A city or a time zone", "Where to read the clock."),
    ),
    "send_email": (
        ("text",),
        "string",
        ("Send an email.", "Write and send a message."),
        ("The message.", "Text to send"),
    ),
    "search_web": (
        ("query",),
        "string",
        ("Search the web.", "Find pages about a query."),
        ("The query.", "Words to search for"),
    ),
    "set_alarm": (
        ("minutes",),
        "integer",
        ("Set an alarm.", "Ring after some minutes."),
        ("Minutes from now.", "How long to wait"),
    ),
    "translate": (
        ("text",),
        "string",
        ("Translate a text into English.", "Translator."),
        ("The text.", "What to translate"),
    ),
    "stock_price": (
        ("symbol",),
        "string",
        ("Get the price of a stock.", "Stock quotes."),
        ("Ticker symbol", "The company."),
    ),
    "play_song": (("title",), "string", ("Play a song.", "Music player."), ("Title of the song", "What to play.")),
}
DECOYS = tuple(name for name in CATALOGUE if name not in REAL)
SPELLINGS = {"integer": ("integer", "integer", "int", "number"), "string": ("string", "string", "string", "str")}


def schema(rng, name):
    """One way to describe the tool `name`: the JSON object of OpenAI's format, as a dict."""
    arguments, kind, descriptions, argument_descriptions = CATALOGUE[name]
    argument = rng.choice(arguments)
    entry = {"type": rng.choice(SPELLINGS[kind])}
    if rng.random() < 0.75:
        entry["description"] = rng.choice(argument_descriptions)
        if rng.random() < 0.15:
            entry = dict(reversed(entry.items()))
    parameters = [("type", "object"), ("properties", {argument: entry})]
    if rng.random() < 0.9:
        parameters.insert(rng.randrange(3), ("required", [argument]))
    if rng.random() < 0.1:
        parameters.append(("additionalProperties", False))
    function = [("name", name), ("description", rng.choice(descriptions)), ("parameters", dict(parameters))]
    variant = rng.random()
    if variant < 0.1:
        function.pop(1)
    elif variant < 0.15:
        function[1], function[2] = function[2], function[1]
    return {"type": "function", "function": dict(function)}


def argument_name(tool):
    """The name of a schema's only argument."""
    return next(iter(tool["function"]["parameters"]["properties"]))


def offer(rng, most=4):
    """A list of one to `most` tools, at least one of which the model can use."""
    count = rng.choice((1, 1, 2, 2, 3, most))
    names = rng.sample(REAL, min(count, len(REAL)))
    if rng.random() < 0.3:
        names[rng.randrange(len(names)) :] = [rng.choice(DECOYS)]
        names = names if set(names) & set(REAL) else [*names, rng.choice(REAL)]
    rng.shuffle(names)
    return {name: schema(rng, name) for name in names}
