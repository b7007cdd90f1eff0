"""A reply of a history that a turn continues: what of it is kept, and how both parts become one message.

Notes:
- A chat keeps the tokens of its last reply, so that the model continues what it wrote. The text of another reply
  (edited, or read from a file) is encoded.
- A reply that ends inside a tool call, or inside a character, is continued from before it: the model writes it again.
  No call of a reply that was cut has run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..generation.options import check
from ..text.events import Done
from ..text.input_messages import check_messages
from ..text.message import Message, PartialReply
from ..text.reply import CALL_END, CALL_START, ReplyParser
from ..text.tokenizer import Tokenizer

#: The finish reasons of a reply that did not end by itself.
CUT = ("length", "cancelled", "error", "repetition")
INCOMPLETE = "\ufffd"  # the text of an incomplete character


@dataclass(frozen=True)
class WrittenReply:
    """The tokens of a reply as the model wrote them, and whether its prompt opened a thought."""

    message: Message
    ids: tuple[int, ...]
    thinking: bool

    def kept(self, tokenizer: Tokenizer) -> BegunReply | None:
        """The reply up to its first call and its last whole character; None if the message has another text."""
        thought, answer = _texts(self.message)
        parser, decoder, partial = ReplyParser(self.thinking), tokenizer.stream_decoder(), PartialReply()
        ids, seen, whole, texts, in_thought = 0, ("", ""), ("", ""), ("", ""), self.thinking
        for count, id in enumerate(self.ids, start=1):
            for event in parser.feed(decoder.feed(id)):
                partial.add(event)
            longer = len(partial.thinking) > len(thought) or len(partial.answer) > len(answer)
            if parser.inside_call or longer:  # events of a cancelled reply that were not consumed
                break
            seen = partial.thinking, partial.answer
            held = (parser.held, "") if parser.inside_thought else ("", parser.held)
            whole = seen[0] + held[0], seen[1] + held[1]
            if not decoder.pending:
                ids, texts, in_thought = count, whole, parser.inside_thought
        ends = [text in (seen[i], whole[i], whole[i] + INCOMPLETE) for i, text in enumerate((thought, answer))]
        if not (ends[0] and (ends[1] or answer.removeprefix(seen[1]).lstrip().startswith(CALL_START))):
            return None  # it ended at a stop string
        kept = self.message | {"content": texts[1], "reasoning_content": texts[0]}
        return BegunReply(kept, self.thinking, in_thought, self.ids[:ids])


@dataclass(frozen=True)
class BegunReply:
    """The part of a reply that is kept: as tokens of the model, or else as the text of `message`."""

    message: Message
    thinking: bool
    in_thought: bool  # whether it ends there
    ids: tuple[int, ...] = ()
    is_edited: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.ids or any(_texts(self.message)))

    def partial(self) -> PartialReply:
        """The text before the first new event. A line end at the end of a thought comes with the next event."""
        thought, answer = _texts(self.message)
        return PartialReply(thought.removesuffix("\n") if self.in_thought else thought, answer)

    def joined(self, later: Message) -> Message:
        """One message of both parts. `later` has the whole text; its counts are those of the new part."""
        own = ("content", "reasoning_content", "tool_calls", "finish_reason", "stats")
        stats, new = self.message.get("stats"), later.get("stats")
        try:
            if stats and new and not self.is_edited:
                later = {**later, "stats": asdict(Done(**stats).joined(Done(**new)))}
            elif stats and not self.is_edited:
                later = {**later, "stats": stats}
        except TypeError:  # counts of another program
            pass
        return {key: value for key, value in self.message.items() if key not in own} | later


def last_reply(messages: Sequence[Message]) -> int | None:
    """The place of the last reply, if nothing but results of its calls follows it."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place]["role"] != "tool":
            return place if messages[place]["role"] == "assistant" else None
    return None


def is_cut(message: Message) -> bool:
    """Whether it is a reply that did not end by itself."""
    return message.get("finish_reason") in CUT


def begun_reply(
    tokenizer: Tokenizer, messages: Sequence[Message], written: WrittenReply | None, text: str | Message | None
) -> tuple[list[Message], BegunReply]:
    """The messages before the last reply, and the part of it that is continued; `text` replaces its answer.

    Raises ValueError if there is no such reply, if it ended with calls of tools, and for a text that is empty.
    """
    place = last_reply(messages)
    if place is None:
        raise ValueError("there is no reply to continue: the last message is not the assistant's")
    message = messages[place]
    if message.get("tool_calls") and not is_cut(message):
        raise ValueError(
            "the last reply ended with calls of tools, and cannot be continued: resume() gives their results"
        )
    before, (thought, content) = list(messages[:place]), _texts(message)
    if text is not None:
        check("the text of the reply", text, isinstance(text, (str, Mapping)), "a string or a message")
        given: dict[str, Any] = {"role": "assistant", "content": text, "reasoning_content": thought}
        [edited] = check_messages([given if isinstance(text, str) else text])
        if edited["role"] != "assistant" or edited.get("tool_calls") or not edited["content"].strip():
            raise ValueError("the text of the reply must be a text of the assistant that is not empty and has no calls")
        if _texts(edited) != (thought, content):
            kept = {key: value for key, value in message.items() if key != "reasoning_content"} | edited
            return before, BegunReply(kept, bool(_texts(edited)[0]), False, is_edited=True)
    if written is not None and written.message is message and (begun := written.kept(tokenizer)) is not None:
        return before, begun
    if is_cut(message):
        thought, content = (
            (thought, content.removesuffix(INCOMPLETE)) if content else (thought.removesuffix(INCOMPLETE), "")
        )
        if CALL_START in content and CALL_END not in content[content.rindex(CALL_START) :]:
            content = content[: content.rindex(CALL_START)]
    kept = message | {"content": content, "reasoning_content": thought}
    return before, BegunReply(kept, bool(thought), in_thought=not content)


def _texts(message: Message) -> tuple[str, str]:
    """Thought and answer."""
    return message.get("reasoning_content") or "", message["content"]
