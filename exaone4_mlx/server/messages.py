"""Anthropic's dialect: /v1/messages and /v1/messages/count_tokens.

Notes:
- `cache_control` has no effect: prefixes are reused without it. The system line `x-anthropic-billing-header`, which
  changes with each request, is left out, because it would end the common prefix there.
- A thought needs no signature here. Clients send it back with the empty one that they were given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ..generation.options import Options
from .contract import Collected, Contract, Number, Object, Whole, WrittenCall, is_continued, new_id, sse
from .engine import EngineEvent, Task
from .openai import Function, FunctionTool, NamedChoice, NamedFunction, chosen_tools

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "repetition": "max_tokens"}
BILLING = "x-anthropic-billing-header"


class Tool(Contract):
    name: str = Field(min_length=1)
    description: str | None = None
    input_schema: Object
    type: Literal["custom"] | None = None
    cache_control: Object | None = Field(None, description="No effect.")
    strict: bool | None = None
    eager_input_streaming: bool | None = Field(None, description="No effect: arguments are streamed as they come.")
    defer_loading: bool | None = Field(None, description="No effect: each tool is offered from the beginning.")
    input_examples: list[Object] | None = Field(None, description="No effect.")
    allowed_callers: list[str] | None = Field(None, description="No effect.")

    def as_openai(self) -> FunctionTool:
        function = Function(
            name=self.name, description=self.description or None, parameters=self.input_schema, strict=self.strict
        )
        return FunctionTool(function=function)


class ToolChoice(Contract):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingMode(Contract):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None
    display: str | None = Field(None, description="No effect.")


class CountRequest(Contract):
    """A request to /v1/messages/count_tokens."""

    model: str = ""
    messages: list[Object] = Field(min_length=1)
    system: str | list[Object] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingMode | None = None
    output_config: Object | None = Field(None, description="`format` is the schema of the answer.")
    context_management: Object | None = Field(None, description="No effect.")
    cache_control: Object | None = Field(None, description="No effect.")

    def task(self, thinks: bool, **options: Any) -> Task:
        thinking = thinks if self.thinking is None else self.thinking.type != "disabled"
        messages = read_messages(self.system, self.messages)
        continued = is_continued(messages)
        if self.thinking and self.thinking.budget_tokens and not continued:
            options["thinking_budget"] = self.thinking.budget_tokens
        choice = self.tool_choice or ToolChoice(type="auto")
        wanted: Any = "required" if choice.type in ("any", "tool") else choice.type
        if choice.name is not None and wanted == "required":
            wanted = NamedChoice(function=NamedFunction(name=choice.name))
        offered, forced, strict = chosen_tools([tool.as_openai() for tool in self.tools or ()], wanted)
        options |= {"thinking": thinking and not continued, "continue_final_message": continued}
        return Task(messages, Options(**options), offered, forced, strict, bool(choice.disable_parallel_tool_use))


class MessagesRequest(CountRequest):
    """A request to /v1/messages."""

    max_tokens: Whole
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Whole | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: Object | None = Field(None, description="No effect.")
    service_tier: str | None = Field(None, description="No effect.")

    def task(self, thinks: bool, **options: Any) -> Task:
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        options |= {name: value for name, value in given.items() if value is not None}
        if (form := (self.output_config or {}).get("format")) is not None:
            if not isinstance(form, dict) or form.get("type") != "json_schema":
                raise ValueError("output_config.format must have the type json_schema, and a schema")
            options["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
        return super().task(thinks, **options, max_tokens=self.max_tokens, stop=self.stop_sequences or ())


def read_messages(system: str | Sequence[Object] | None, messages: Sequence[Object]) -> list[Object]:
    """Messages of Anthropic's form as OpenAI-style messages. Raises ValueError, naming the message."""
    read: list[Object] = []
    blocks: Any = [{"type": "text", "text": system}] if isinstance(system, str) else list(system or ())
    texts = [_text(block, "system") for block in blocks]
    if text := "\n\n".join(text for text in texts if text and not text.startswith(BILLING)):
        read.append({"role": "system", "content": text})
    for number, message in enumerate(messages):
        role, content, where = message.get("role"), message.get("content"), f"messages.{number}"
        if role not in ("user", "assistant"):
            raise ValueError(f"{where}: the role must be user or assistant, not {role!r}")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list):
            raise ValueError(f"{where}: content must be a text or a list of blocks")
        read += _assistant(blocks, where) if role == "assistant" else _user(blocks, where)
    return read


def _assistant(blocks: Sequence[Any], where: str) -> list[Object]:
    message: Object = {"role": "assistant", "content": ""}
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + str(block.get("thinking") or "")
        elif kind == "tool_use":
            call = {
                "id": block.get("id"),
                "type": "function",
                "function": {"name": block.get("name"), "arguments": block.get("input") or {}},
            }
            message.setdefault("tool_calls", []).append(call)
        elif kind != "redacted_thinking":
            message["content"] += _text(block, where)
    return [message]


def _user(blocks: Sequence[Any], where: str) -> list[Object]:
    """Results of tools come first, each as a message; then the text of the user."""
    results: list[Object] = []
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, dict) and block.get("type") == "tool_result":
            content = block.get("content")
            if isinstance(content, list):
                content = "".join(_text(part, where) for part in content)
            if block.get("is_error"):
                content = {"error": content}
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content or ""})
        else:
            texts.append(_text(block, where))
    return [*results, *([{"role": "user", "content": "\n\n".join(texts)}] if texts or not results else [])]


def _text(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else type(block).__name__
    if kind != "text" or not isinstance(block.get("text"), str):
        raise ValueError(f"{where}: blocks may hold text, not {kind!r}; this model reads text alone")
    return str(block["text"])


class MessagesWriter:
    """Writes a reply as a message, whole or as a stream of events."""

    def __init__(self, model: str) -> None:
        self._head: Object = {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": model}
        self.prompt_tokens = 0  # that the first event of a stream names; how many of them are cached is known later

    def whole(self, replies: Sequence[Collected]) -> Object:
        (reply,) = replies
        content: list[Object] = []
        if reply.thinking:
            content.append({"type": "thinking", "thinking": reply.thinking, "signature": ""})
        if reply.content:
            content.append({"type": "text", "text": reply.content})
        content += [
            {"type": "tool_use", "id": id, "name": call.name, "input": call.arguments} for id, call in reply.calls
        ]
        return {**self._head, "content": content, **self._stopped(reply), "usage": self._usage(reply)}

    async def stream(self, events: AsyncIterator[tuple[int, EngineEvent]], _: int) -> AsyncIterator[str]:
        empty: Object = {"content": [], "stop_reason": None, "stop_sequence": None}
        zero = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 0}
        usage = {"input_tokens": self.prompt_tokens, **zero}
        yield self._event("message_start", message={**self._head, **empty, "usage": usage})
        reply, kind, index = Collected(), "", -1
        async for _, event in events:
            piece = reply.add(event)
            if piece is None:
                continue
            new = "tool_use" if piece.call else ("thinking" if piece.thinking else "text")
            if new != kind or piece.opens:
                if kind:
                    yield self._event("content_block_stop", index=index)
                kind, index = new, index + 1
                yield self._event("content_block_start", index=index, content_block=self._block(new, piece.call))
            if piece.call is not None:
                if piece.arguments:
                    yield self._delta(index, {"type": "input_json_delta", "partial_json": piece.arguments})
            elif piece.thinking:
                yield self._delta(index, {"type": "thinking_delta", "thinking": piece.thinking})
            else:
                yield self._delta(index, {"type": "text_delta", "text": piece.text})
        if kind:
            yield self._event("content_block_stop", index=index)
        yield self._event("message_delta", delta=self._stopped(reply), usage=self._usage(reply))
        yield self._event("message_stop")

    def failed(self, error: Object) -> str:
        """The event for an error after the first events."""
        return self._event("error", error={"type": "api_error", "message": error["message"]})

    def _block(self, kind: str, call: WrittenCall | None) -> Object:
        if call is not None:
            return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        return (
            {"type": "thinking", "thinking": "", "signature": ""} if kind == "thinking" else {"type": kind, "text": ""}
        )

    def _stopped(self, reply: Collected) -> Object:
        reason = STOP_REASONS.get(reply.counts.finish_reason, "end_turn")
        if reply.stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": reply.stop}
        return {"stop_reason": reason, "stop_sequence": None}

    def _usage(self, reply: Collected) -> Object:
        counts = reply.counts
        return {
            "input_tokens": counts.prompt_tokens - counts.cached_tokens,
            "cache_read_input_tokens": counts.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": counts.thinking_tokens + counts.answer_tokens,
        }

    def _delta(self, index: int, delta: Object) -> str:
        return self._event("content_block_delta", index=index, delta=delta)

    def _event(self, event: str, **content: Any) -> str:
        return sse({"type": event, **content}, event)
