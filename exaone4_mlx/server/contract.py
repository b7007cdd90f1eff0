"""What all dialects share: fields of requests, the pieces of a reply, and lines of server-sent events.

Notes:
- A field that is not listed is refused with its name. A field that is null counts as absent.
- Fields that cannot change a reply are listed, and have no effect: `user`, `store`, `metadata` and the like.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..generation.options import Options
from ..text.calls import arguments_text
from ..text.events import CallPart, Done, Logprobs, Thinking, TokenLogprob
from ..text.tokenizer import Tokenizer
from ..tools.call import ToolCall
from .engine import EngineEvent, StopFound

#: Efforts of thinking -> whether the model thinks.
EFFORTS = {"none": False, "minimal": False, "low": True, "medium": True, "high": True, "xhigh": True}
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Object = dict[str, Any]
log = logging.getLogger("exaone4_mlx.server")


class Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class StreamOptions(Contract):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="No effect.")


class SampledRequest(Contract):
    """The fields of OpenAI's two completion dialects."""

    model: str = Field("", description="Any name, or with named adapters one of GET /v1/models.")
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Whole | None = None
    min_p: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    xtc_probability: Number | None = None
    xtc_threshold: Number | None = None
    seed: Whole | None = None
    logit_bias: dict[str, Number] | None = None
    max_tokens: Whole | None = Field(None, description="Of thought and answer together.")
    min_tokens: Whole | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="No effect.")

    @field_validator("stop")
    @classmethod
    def few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 16:
            raise ValueError("at most 16 stop texts")
        return value or None

    def sampling(self) -> Object:
        """The fields that are options of a reply, by the names of `Options`."""
        names = (
            "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
            "xtc_probability", "xtc_threshold", "seed", "logit_bias", "max_tokens", "min_tokens", "stop",
        )  # fmt: skip
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def with_seed(options: Options, number: int) -> Options:
    """The options of the reply with this number, of several to one prompt."""
    return options if not number or options.seed is None else dataclasses.replace(options, seed=options.seed + number)


def is_continued(messages: Sequence[Object]) -> bool:
    """Whether the last message is a begun reply, which is continued."""
    return bool(messages) and messages[-1].get("role") == "assistant" and not messages[-1].get("tool_calls")


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


@dataclass
class WrittenCall:
    """A call in a stream: its id, its number in the reply, and the arguments that were sent."""

    id: str
    name: str
    number: int
    arguments: str = ""
    is_complete: bool = False


@dataclass
class Collected:
    """A reply as it grows: its parts in order, and its counts at the end."""

    thinking: str = ""
    text: str = ""
    calls: list[tuple[str, ToolCall]] = field(default_factory=list)  # with their ids
    logprobs: list[Logprobs] = field(default_factory=list)  # of the answer
    stop: str | None = None  # the stop text that ended it
    done: Done | None = None
    _pending: list[Logprobs] = field(default_factory=list)
    _space: str = ""
    _written: WrittenCall | None = None  # the call that is being written
    _begun: int = 0  # calls

    def add(self, event: EngineEvent) -> ReplyPart | None:
        """Adds an event. Returns what a stream sends for it."""
        if isinstance(event, Logprobs):
            self._pending.append(event)
            return None
        if isinstance(event, Done):
            self.done = event
            return None
        if isinstance(event, StopFound):
            self.stop = event.text
            return None
        if isinstance(event, (CallPart, ToolCall)):
            return self._add_call(event)
        tokens, self._pending, self._written = self._pending, [], None
        if isinstance(event, Thinking):
            self.thinking += event.text
            return ReplyPart(thinking=event.text)
        text = self._space + event.text
        if (not self.text or self.calls) and not text.strip():
            self._space, self._pending = text, tokens  # it may be the line ends before a call
            return None
        self._space = ""
        self.text += text
        self.logprobs += tokens
        return ReplyPart(text=text, logprobs=tokens)

    def _add_call(self, event: CallPart | ToolCall) -> ReplyPart:
        written = self._written
        if isinstance(event, CallPart):
            arguments = event.arguments
        else:
            self._space = ""
            arguments = whole = arguments_text(event)
            if written is not None and (written.name, written.arguments) == (
                event.name,
                whole[: len(written.arguments)],
            ):
                arguments = whole[len(written.arguments) :]
            else:
                written = None  # what was sent, if anything, is not this call
        opens = written is None
        if written is None:
            written = WrittenCall(new_id("call_"), event.name, self._begun)
            self._begun += 1
        written.arguments += arguments
        self._written = written
        if isinstance(event, ToolCall):
            written.is_complete, self._written = True, None
            self.calls.append((written.id, event))
        return ReplyPart(call=written, arguments=arguments, opens=opens)

    @property
    def counts(self) -> Done:
        if self.done is None:
            raise RuntimeError("the reply is not complete")
        return self.done

    @property
    def content(self) -> str:
        """The answer; beside calls without the line ends around them."""
        return self.text.strip() if self.calls else self.text


@dataclass(frozen=True)
class ReplyPart:
    """A part of a reply that a stream sends: of the thought, of the answer, or of the arguments of a call.

    A call whose text turns out to be none stays incomplete: its arguments are the beginning of an object.
    """

    thinking: str = ""
    text: str = ""
    call: WrittenCall | None = None
    arguments: str = ""
    opens: bool = False  # whether the call begins here
    logprobs: list[Logprobs] = field(default_factory=list)


def sse(data: Mapping[str, Any] | str, event: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False).encode(errors="replace").decode()
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"


def bytes_of(tokenizer: Tokenizer, token: TokenLogprob) -> list[int] | None:
    return list(tokenizer.token_bytes(token.id)) if tokenizer.has_text(token.id) else None


async def collect(events: AsyncIterator[EngineEvent]) -> Collected:
    """The whole reply of `events`."""
    reply = Collected()
    async for event in events:
        if not isinstance(event, CallPart):
            reply.add(event)
    return reply
