"""Dialogues -> text, in the EXAONE 4.0 prompt format.

The text is what `chat_template.jinja` renders; `python render.py` checks that over many dialogues.
Written out here because training needs to know which characters the assistant wrote, and speed.
"""

import json
import sys
from pathlib import Path
from random import Random

import dialogues

TEMPLATE = Path(__file__).parent.parent / "chat_template.jinja"
END = "[|endofturn|]"
NO_THOUGHT = "[|assistant|]\n<think>\n\n</think>\n\n"
OPEN_THOUGHT = "[|assistant|]\n<think>\n"
TOOLS_HEAD = (
    "# Available Tools\n"
    "You can use none, one, or multiple of the following tools by calling them as functions to help with the user’s query.\n"
    "Here are the tools available to you in JSON format within <tool> and </tool> tags:\n"
)
TOOLS_TAIL = (
    "\nFor each function call you want to make, return a JSON object with function name and arguments within <tool_call> and </tool_call> tags, like:\n"
    '<tool_call>{"name": function_1_name, "arguments": {argument_1_name: argument_1_value, argument_2_name: argument_2_value}}</tool_call>\n'
    '<tool_call>{"name": function_2_name, "arguments": {...}}</tool_call>\n'
    "...\n"
    "Note that if no argument name is specified for a tool, you can just print the argument value directly, without the argument name or JSON formatting."
)


def as_json(value):
    """JSON as the template writes it: Python's spacing, letters as they are."""
    return json.dumps(value, ensure_ascii=False)


def spoken(turn):
    """What the assistant says in a turn, after its thought: text, or tool calls one a line."""
    if turn.get("tool_calls"):
        calls = [call["function"] for call in turn["tool_calls"]]
        return "\n".join(
            f'<tool_call>{{"name": "{call["name"]}", "arguments": {as_json(call["arguments"])}}}</tool_call>'
            for call in calls
        )
    return turn["content"]


def system_text(dialogue):
    """The system turn's text: the system prompt, the list of tools, or both."""
    if not dialogue.tools:
        return dialogue.system
    tools = "".join(f"<tool>{as_json(tool)}</tool>\n" for tool in dialogue.tools.values())
    return (dialogue.system + "\n\n" if dialogue.system else "") + TOOLS_HEAD + tools + TOOLS_TAIL


def pieces(dialogue, last=None, think=False):
    """(text, whether the model learns it) up to turn `last`, an assistant's, which thinks if `think`."""
    last = len(dialogue.turns) - 1 if last is None else last
    system = system_text(dialogue)
    parts = [(f"[|system|]\n{system}{END}\n", False)] if system else []
    for index, turn in enumerate(dialogue.turns[: last + 1]):
        if turn["role"] == "user":
            parts.append((f"[|user|]\n{turn['content']}{END}\n", False))
        elif turn["role"] == "tool":
            parts.append((tool_piece(dialogue.turns, index), False))
        elif index == last and think:
            parts += [
                (OPEN_THOUGHT, False),
                (f"{turn['reasoning_content']}\n</think>\n\n{spoken(turn)}{END}", True),
                ("\n", False),
            ]
        else:
            parts += [(NO_THOUGHT, False), (spoken(turn) + END, True), ("\n", False)]
    return parts


def tool_piece(turns, index):
    """A tool's result; results that follow each other share one turn."""
    opens = turns[index - 1]["role"] != "tool"
    closes = index + 1 == len(turns) or turns[index + 1]["role"] != "tool"
    result = f'<tool_result>{{"result": {as_json(turns[index]["content"])}}}</tool_result>'
    return ("[|tool|]\n" if opens else "") + result + (END if closes else "") + "\n"


def text(parts):
    """The characters of `pieces`."""
    return "".join(part for part, _ in parts)


def messages(dialogue, count=None):
    """The first `count` turns as chat messages, without the thoughts."""
    turns = [
        {key: value for key, value in turn.items() if key != "reasoning_content"} for turn in dialogue.turns[:count]
    ]
    return [{"role": "system", "content": dialogue.system}] * bool(dialogue.system) + turns


def template():
    """The chat template, compiled as transformers does it."""
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False: json.dumps(value, ensure_ascii=ensure_ascii)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def check(count=3000, seed=1):
    """Raise unless `count` dialogues, and their prompts with and without a thought, are the template's."""
    rng, render = Random(seed), template().render
    for _ in range(count):
        example = dialogues.dialogue(rng, rng.choice(("train", "test")), rng.choice([None, "no_tool"]))
        options = {"tools": list(example.tools.values())} if example.tools else {}
        last = len(example.turns) - 1
        rendered = render(messages=messages(example), **options)
        if rendered != text(pieces(example)):
            raise ValueError(f"the template renders otherwise:\n{rendered}\n--\n{text(pieces(example))}")
        for think in (False, True):
            prompt = render(
                messages=messages(example, last), add_generation_prompt=True, enable_thinking=think, **options
            )
            if prompt != text(pieces(example, last, think)[:-2]):
                raise ValueError(f"the template renders this prompt otherwise:\n{prompt}")


if __name__ == "__main__":
    check(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
    print("the template and render.py agree")
