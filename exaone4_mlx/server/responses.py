"""OpenAI's dialect /v1/responses, without stored state: each request holds the whole conversation.

Notes:
- Tools of other types than `function` (a web search, a namespace) are left out, because clients send them always.
- Items that hold no text of a conversation (an encrypted thought, say) are left out, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any, Literal

from pydantic import Field, field_validator

from ..generation.options import Options
from .contract import (
    EFFORTS,
    Collected,
    Contract,
    Effort,
    Number,
    Object,
    Whole,
    arguments_text,
    is_continued,
    new_id,
    now,
    pieces_of,
    sse,
)
from .engine import EngineEvent, Task
from .items import read_items, with_system
from .openai import Function, FunctionTool, NamedChoice, NamedFunction, read_tools


class Reasoning(Contract):
    effort: Effort | None = None
    summary: str | None = Field(None, description="No effect: the thought is the summary.")
    generate_summary: str | None = Field(None, description="No effect.")


class TextFormat(Contract):
    format: Object | None = None
    verbosity: str | None = Field(None, description="No effect.")


class FunctionChoice(Contract):
    type: Literal["function"] = "function"
    name: str


class ResponsesRequest(Contract):
    """A request to /v1/responses."""

    model: str = ""
    input: str | list[Object]
    instructions: str | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    max_output_tokens: Whole | None = None
    tools: list[Object] | None = None
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextFormat | None = None
    stream: bool | None = None
    store: bool | None = Field(None, description="No effect: nothing is stored.")
    include: list[str] | None = Field(None, description="No effect.")
    metadata: Object | None = Field(None, description="No effect.")
    client_metadata: Object | None = Field(None, description="No effect.")
    prompt_cache_key: str | None = Field(None, description="No effect.")
    safety_identifier: str | None = Field(None, description="No effect.")
    service_tier: str | None = Field(None, description="No effect.")
    truncation: Literal["disabled"] | None = None
    user: str | None = Field(None, description="No effect.")
    previous_response_id: str | None = None
    background: Literal[False] | None = None

    @field_validator("previous_response_id")
    @classmethod
    def stateless(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("no response is stored here: send the whole conversation in input")
        return value

    def task(self, thinks: bool) -> Task:
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages = read_items(items)
        if self.instructions:
            messages = with_system(self.instructions, messages)
        effort = self.reasoning.effort if self.reasoning else None
        given: Object = {"continue_final_message": (continued := is_continued(messages))}
        given["thinking"] = not continued and (EFFORTS[effort] if effort else thinks)
        for name, value in {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_output_tokens,
        }.items():
            if value is not None:
                given[name] = value
        form = self.text.format if self.text else None
        if form is not None and form.get("type") == "json_schema":
            given["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
        elif form is not None and form.get("type") != "text":
            given["response_format"] = form
        functions = [tool for tool in self.tools or () if tool.get("type") == "function"]
        tools = [
            FunctionTool(
                function=Function(**{key: value for key, value in tool.items() if key in Function.model_fields})
            )
            for tool in functions
        ]
        choice = self.tool_choice
        named = NamedChoice(function=NamedFunction(name=choice.name)) if isinstance(choice, FunctionChoice) else choice
        offered, forced, strict = read_tools(tools, named)
        return Task(messages, Options(**given), offered, forced, strict, self.parallel_tool_calls is False)


class ResponsesWriter:
    """Writes a reply as a response, whole or as a stream of events."""

    def __init__(self, model: str, request: ResponsesRequest) -> None:
        self._request = request
        self._head: Object = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": now(),
            "model": model,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "metadata": request.metadata or {},
            "max_output_tokens": request.max_output_tokens,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": {"format": (request.text and request.text.format) or {"type": "text"}},
            "tool_choice": request.model_dump()["tool_choice"] or "auto",
            "tools": request.tools or [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "user": request.user,
        }
        self._numbers = count()

    def whole(self, replies: Sequence[Collected]) -> Object:
        (reply,) = replies
        output: list[Object] = []
        if reply.thinking:
            output.append(self._reasoning(new_id("rs_"), reply.thinking))
        if reply.content or not reply.calls:
            output.append(self._message(new_id("msg_"), reply.content))
        for id, call in reply.calls:
            output.append(self._call(new_id("fc_"), id, call.name, arguments_text(call)))
        return self._ended(reply, output)

    async def stream(self, events: AsyncIterator[tuple[int, EngineEvent]], _: int) -> AsyncIterator[str]:
        started = {**self._head, "status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=started)
        yield self._event("response.in_progress", response=started)
        reply, output = Collected(), list[Object]()
        kind, item, text = "", dict[str, Any](), ""
        async for _, event in events:
            piece = reply.add(event)
            if piece is None:
                continue
            new = "call" if piece.call else ("reasoning" if piece.thinking else "message")
            if kind and (new != kind or new == "call"):
                for line in self._closed(kind, item, text, output):
                    yield line
                kind = ""
            if piece.call is not None:
                id, call = piece.call
                item = self._call(new_id("fc_"), id, call.name, "", "in_progress")
                yield self._event("response.output_item.added", output_index=len(output), item=item)
                text = arguments_text(call)
                for part in pieces_of(text):
                    yield self._event(
                        "response.function_call_arguments.delta",
                        item_id=item["id"],
                        output_index=len(output),
                        delta=part,
                    )
                kind = "call"
                continue
            if not kind:
                kind, text = new, ""
                item, lines = self._opened(kind, len(output))
                for line in lines:
                    yield line
            delta = piece.thinking or piece.text
            text += delta
            place: Object = {"item_id": item["id"], "output_index": len(output)}
            if kind == "reasoning":
                yield self._event("response.reasoning_summary_text.delta", **place, summary_index=0, delta=delta)
            else:
                yield self._event("response.output_text.delta", **place, content_index=0, delta=delta, logprobs=[])
        if not kind and not output:
            kind, text = "message", ""
            item, lines = self._opened(kind, 0)
            for line in lines:
                yield line
        if kind:
            for line in self._closed(kind, item, text, output):
                yield line
        ended = self._ended(reply, output)
        name = "response.completed" if ended["status"] == "completed" else "response.incomplete"
        yield self._event(name, response=ended)

    def _opened(self, kind: str, place: int) -> tuple[Object, list[str]]:
        is_thought = kind == "reasoning"
        new = self._reasoning(new_id("rs_"), "", "in_progress") if is_thought else None
        item = new or self._message(new_id("msg_"), None, "in_progress")
        added = self._event("response.output_item.added", output_index=place, item=item)
        if is_thought:
            part = self._event(
                "response.reasoning_summary_part.added",
                item_id=item["id"],
                output_index=place,
                summary_index=0,
                part={"type": "summary_text", "text": ""},
            )
        else:
            part = self._event(
                "response.content_part.added",
                item_id=item["id"],
                output_index=place,
                content_index=0,
                part={"type": "output_text", "text": "", "annotations": [], "logprobs": []},
            )
        return item, [added, part]

    def _closed(self, kind: str, item: Object, text: str, output: list[Object]) -> list[str]:
        """The last events of an item, which is added to `output`."""
        place: Object = {"item_id": item["id"], "output_index": len(output)}
        if kind == "call":
            done = self._call(item["id"], item["call_id"], item["name"], text)
            lines = [self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=text)]
        elif kind == "reasoning":
            done, part = self._reasoning(item["id"], text), {"type": "summary_text", "text": text}
            lines = [
                self._event("response.reasoning_summary_text.done", **place, summary_index=0, text=text),
                self._event("response.reasoning_summary_part.done", **place, summary_index=0, part=part),
            ]
        else:
            done = self._message(item["id"], text)
            lines = [
                self._event("response.output_text.done", **place, content_index=0, text=text, logprobs=[]),
                self._event("response.content_part.done", **place, content_index=0, part=done["content"][0]),
            ]
        lines.append(self._event("response.output_item.done", output_index=len(output), item=done))
        output.append(done)
        return lines

    def failed(self, error: Object) -> str:
        """The event for an error after the first events."""
        response = {**self._head, "status": "failed", "output": [], "usage": None, "error": error}
        return self._event("response.failed", response=response)

    def _ended(self, reply: Collected, output: list[Object]) -> Object:
        counts = reply.counts
        complete = counts.finish_reason not in ("length", "repetition")
        tokens = counts.thinking_tokens + counts.answer_tokens
        return {
            **self._head,
            "status": "completed" if complete else "incomplete",
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "output": output,
            "usage": {
                "input_tokens": counts.prompt_tokens,
                "input_tokens_details": {"cached_tokens": counts.cached_tokens},
                "output_tokens": tokens,
                "output_tokens_details": {"reasoning_tokens": counts.thinking_tokens},
                "total_tokens": counts.prompt_tokens + tokens,
            },
        }

    def _event(self, event: str, **content: Any) -> str:
        return sse({"type": event, "sequence_number": next(self._numbers), **content}, event)

    def _message(self, id: str, text: str | None, status: str = "completed") -> Object:
        parts = [] if text is None else [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        return {"id": id, "type": "message", "role": "assistant", "status": status, "content": parts}

    def _reasoning(self, id: str, text: str, status: str = "completed") -> Object:
        parts = [{"type": "summary_text", "text": text}] if text else []
        return {"id": id, "type": "reasoning", "summary": parts, "status": status}

    def _call(self, id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> Object:
        return {
            "id": id,
            "type": "function_call",
            "call_id": call_id,
            "name": name,
            "arguments": arguments,
            "status": status,
        }
