"""How a reply was made: the model, its counts and its settings, as lines for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exaone4_mlx.files.text import number
from exaone4_mlx.text.message import Message

from .i18n import Words

#: Settings and the values with which they have no effect
SHOWN = {
    "thinking_budget": 0, "temperature": None, "top_p": 1, "top_k": 0, "min_p": 0, "presence_penalty": 0,
    "frequency_penalty": 0, "repetition_penalty": 1, "max_tokens": None, "seed": None,
}  # fmt: skip
LABELS = {"thinking_budget": "budget"}


def reply_details(replies: Sequence[Message], words: Words) -> list[tuple[str, str]]:
    """(label, value) of the replies of one turn, in the language of `words`. Their fields may hold any values."""
    return list(_details(replies, words)) if replies else []


def _details(replies: Sequence[Message], words: Words) -> Iterator[tuple[str, str]]:
    def total(name: str) -> Any:
        return sum(number(_mapping(reply.get("stats")).get(name)) for reply in replies)

    made, stats = _mapping(replies[-1].get("made")), _mapping(replies[-1].get("stats"))
    settings = _mapping(made.get("settings"))
    if made.get("model"):
        yield words("reply_model"), str(made["model"])
    if seconds := total("decode_seconds"):
        count = total("thinking_tokens") + total("answer_tokens")
        yield words("reply_length"), words("tokens", count=f"{count:,}")
        yield words("reply_speed"), words("speed", speed=f"{count / seconds:.1f}")
        yield words("reply_time"), words.seconds(seconds + total("prefill_seconds"))
    if prompt := number(stats.get("prompt_tokens")):
        reused = words("reused", count=f"{number(stats.get('cached_tokens')):,}")
        yield words("reply_prompt"), f"{words('tokens', count=f'{prompt:,}')} ({reused})"
    if isinstance(settings.get("thinking"), bool):
        yield words("think"), words("on" if settings["thinking"] else "off")
    for name, neutral in SHOWN.items():
        if isinstance(value := settings.get(name), (int, float)) and value != neutral:
            label = words(LABELS.get(name, name)).split("(")[0].strip()
            yield label, f"{value:,}" if isinstance(value, int) and name != "seed" else f"{value:.10g}"
    if isinstance(tools := settings.get("tools"), list) and tools:
        yield words("use_tools"), ", ".join(map(str, tools))
    if settings.get("system"):
        yield words("system"), str(settings["system"])


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
