"""OpenAI's dialect /v1/responses: a reply as a response, whole or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

from ..text.calls import arguments_text
from .contract import Collected, Object, WrittenCall, new_id, now, sse
from .engine import EngineEvent
from .responses import ResponsesRequest


class ResponsesWriter:
    """Writes a reply as a response, whole or as a stream of events."""

    def __init__(self, model: str, request: ResponsesRequest) -> None:
        self._names = request.functions()[1]
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
        call: WrittenCall | None = None
        async for _, event in events:
            piece = reply.add(event)
            if piece is None:
                continue
            new = "call" if piece.call else ("reasoning" if piece.thinking else "message")
            if kind and (new != kind or piece.opens):
                for line in self._closed(kind, item, text, output, call):
                    yield line
                kind = ""
            call = piece.call
            if not kind:
                kind, text = new, ""
                item, lines = self._opened(kind, len(output), call)
                for line in lines:
                    yield line
            delta = piece.arguments or piece.thinking or piece.text
            text += delta
            place: Object = {"item_id": item["id"], "output_index": len(output)}
            if kind == "call":
                if delta:
                    yield self._event("response.function_call_arguments.delta", **place, delta=delta)
            elif kind == "reasoning":
                yield self._event("response.reasoning_summary_text.delta", **place, summary_index=0, delta=delta)
            else:
                yield self._event("response.output_text.delta", **place, content_index=0, delta=delta, logprobs=[])
        if not kind and not output:
            kind, text = "message", ""
            item, lines = self._opened(kind, 0, None)
            for line in lines:
                yield line
        if kind:
            for line in self._closed(kind, item, text, output, call):
                yield line
        ended = self._ended(reply, output)
        name = "response.completed" if ended["status"] == "completed" else "response.incomplete"
        yield self._event(name, response=ended)

    def _opened(self, kind: str, place: int, call: WrittenCall | None) -> tuple[Object, list[str]]:
        if call is not None:
            item = self._call(new_id("fc_"), call.id, call.name, "", "in_progress")
            return item, [self._event("response.output_item.added", output_index=place, item=item)]
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

    def _closed(self, kind: str, item: Object, text: str, output: list[Object], call: WrittenCall | None) -> list[str]:
        """The last events of an item, which is added to `output`."""
        place: Object = {"item_id": item["id"], "output_index": len(output)}
        if call is not None:
            status = "completed" if call.is_complete else "incomplete"
            done = self._call(item["id"], item["call_id"], call.name, text, status)
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
        space, name = self._names.get(name, (None, name))
        item = {
            "id": id,
            "type": "function_call",
            "call_id": call_id,
            "name": name,
            "arguments": arguments,
            "status": status,
        }
        return item if space is None else {**item, "namespace": space}
