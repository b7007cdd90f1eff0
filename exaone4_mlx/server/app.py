"""The routes of the server, as a FastAPI application.

Notes:
- A reply is prepared before the status is sent, so that what a client got wrong is a status and not a broken stream.
- A closed connection ends the reply within a token. While a prompt is read, a stream sends pings.
- The page of the contract (/docs) loads nothing: it lists the routes, and /openapi.json has the schemas.
"""

from __future__ import annotations

import html
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI, Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from .access import Access, AccessGuard
from .completions import CompletionRequest, CompletionWriter
from .contract import Object, collect, log
from .engine import EngineEvent, ModelServer, Prepared, Task, TooLong
from .errors import Json, Refused, checked, fault, http_error, invalid, refusal_of, refused
from .messages import CountRequest, MessagesRequest, MessagesWriter
from .openai import ChatRequest, ChatWriter, numbered
from .queue import QueueFull, ServerEnds
from .response_events import ResponsesWriter
from .responses import ResponsesRequest
from .streams import Stream, Writer, all_of, guarded, merged, unless_closed, with_pings


def make_app(engine: ModelServer, access: Access, *, thinks: bool = False, logs_contents: bool = False) -> Any:
    """The ASGI application. `thinks` is the mode of requests that name none."""
    app = FastAPI(title="exaone4_mlx", version=__version__, docs_url=None, redoc_url=None)
    app.router.route_class = StrictRoute
    routes = Routes(engine, thinks, logs_contents)
    posts: dict[str, Callable[..., Awaitable[Response]]] = {
        "/v1/chat/completions": routes.chat,
        "/v1/completions": routes.completions,
        "/v1/responses": routes.responses,
        "/v1/messages": routes.messages,
    }
    for path, route in posts.items():
        app.post(path, response_model=None)(route)
        app.post(path.removeprefix("/v1"), response_model=None, include_in_schema=False)(route)
    app.post("/v1/messages/count_tokens", response_model=None)(routes.count_tokens)
    app.get("/v1/models", response_model=None)(routes.models)
    app.get("/v1/models/{name:path}", response_model=None)(routes.model)
    app.get("/health")(routes.health)
    app.get("/metrics", response_class=PlainTextResponse)(routes.metrics)
    app.get("/docs", include_in_schema=False, response_class=HTMLResponse)(lambda: _contract_page(app))
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(Refused, refused)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, fault)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(access.origins),
            allow_methods=["GET", "POST", "OPTIONS"],
            allow_headers=["Authorization", "Content-Type", "X-Api-Key", "Anthropic-Version", "Anthropic-Beta"],
        )
    paths = {route.path for route in app.routes if isinstance(route, APIRoute)}
    app.state.metrics = engine.metrics
    return AccessGuard(
        app, access, lambda path, status: engine.metrics.request(path if path in paths else "other", status)
    )


class StrictRequest(HttpRequest):
    """A request whose body is JSON in the strict sense: NaN and infinite numbers are refused."""

    async def json(self) -> Any:
        return json.loads(await self.body(), parse_constant=_finite, parse_float=_finite)


class StrictRoute(APIRoute):
    """A route that reads bodies as StrictRequest does."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: HttpRequest) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise HTTPException(400, f"the body: {text[:40]} is no number of JSON, or too large")


class Routes:
    """The routes of one engine."""

    def __init__(self, engine: ModelServer, thinks: bool, logs_contents: bool) -> None:
        self._engine, self._thinks, self._logs_contents = engine, thinks, logs_contents

    async def chat(self, body: ChatRequest, request: HttpRequest) -> Response:
        """OpenAI's chat completions."""
        model = self._id_of(body.model)
        writer = ChatWriter(model, self._engine.tokenizer, body)
        tasks = checked(lambda: numbered([body.task(self._thinks)], body.n or 1))
        return await self._answer(request, model, writer, tasks, bool(body.stream))

    async def completions(self, body: CompletionRequest, request: HttpRequest) -> Response:
        """OpenAI's text completions, without a chat template."""
        model = self._id_of(body.model)
        tasks = checked(lambda: numbered(body.tasks(self._engine.tokenizer), body.n or 1))
        return await self._answer(request, model, CompletionWriter(model, body), tasks, bool(body.stream))

    async def responses(self, body: ResponsesRequest, request: HttpRequest) -> Response:
        """OpenAI's responses, without stored state."""
        model, task = self._id_of(body.model), checked(lambda: body.task(self._thinks))
        return await self._answer(request, model, ResponsesWriter(model, body), [task], bool(body.stream))

    async def messages(self, body: MessagesRequest, request: HttpRequest) -> Response:
        """Anthropic's messages."""
        model, task = self._id_of(body.model), checked(lambda: body.task(self._thinks))
        return await self._answer(request, model, MessagesWriter(model), [task], bool(body.stream))

    async def count_tokens(self, body: CountRequest) -> Object:
        """The tokens of a prompt."""
        self._id_of(body.model)
        prepared = await self._prepared(checked(lambda: body.task(self._thinks)))
        return {"input_tokens": len(prepared.request.ids)}

    async def models(self) -> Object:
        """The model, and one for each named adapter.

        Codex reads `models`, which names none: it keeps its own instructions and settings.
        """
        return {"object": "list", "data": [self._model(name) for name in self._engine.names], "models": []}

    async def model(self, name: str) -> Object:
        """The model, under any name that clients use for it; with named adapters under its own."""
        return self._model(self._id_of(name))

    async def health(self) -> Object:
        """Whether the server answers."""
        return {"status": "ok"}

    async def metrics(self) -> PlainTextResponse:
        """Prometheus' text format."""
        return PlainTextResponse(self._engine.metrics.text(), media_type="text/plain; version=0.0.4")

    def _id_of(self, name: str) -> str:
        try:
            return self._engine.id_of(name)
        except KeyError as error:
            names = ", ".join(self._engine.names)
            raise Refused(404, f"the models are {names}, not {name!r:.99}", "model", "model_not_found") from error

    def _model(self, name: str) -> Object:
        engine = self._engine
        return {
            "id": name,
            "object": "model",
            "created": engine.created,
            "owned_by": "exaone4_mlx",
            "max_model_len": engine.context,
        }

    async def _prepared(self, task: Task) -> Prepared:
        try:
            return await self._engine.prepare(task)
        except TooLong as error:
            raise Refused(413, str(error), "messages", "context_length_exceeded") from error
        except (ValueError, RuntimeError) as error:
            raise refusal_of(error) from error

    async def _answer(
        self, request: HttpRequest, model: str, writer: Writer, tasks: Sequence[Task], streams: bool
    ) -> Response:
        started = time.perf_counter()
        queue = self._engine.queue
        if len(tasks) > (most := queue.max_running + queue.max_waiting):
            raise Refused(
                400, f"this server takes {most} replies at a time, and the request asks for {len(tasks)}", "n"
            )
        prepared = [await self._prepared(task) for task in tasks]
        if isinstance(writer, MessagesWriter):
            writer.prompt_tokens = len(prepared[0].request.ids)
        if not queue.has_room(len(tasks)):
            raise Refused(429, "too many requests wait already; try again later", code="queue_full")
        client = request.state.client
        counted = _Counted(request, client, started, self._logs_contents)
        if streams:
            events = counted.of(merged([self._engine.events(one, client, model) for one in prepared]))
            lines = with_pings(guarded(writer, events, len(prepared), self._engine.metrics))
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return Stream(lines, media_type="text/event-stream", headers=headers)
        works = [collect(self._engine.events(one, client, model)) for one in prepared]
        try:
            replies = await unless_closed(request, all_of(works))
        except QueueFull as error:
            raise Refused(429, str(error), code="queue_full") from error
        except ServerEnds as error:
            raise Refused(503, str(error), code="shutting_down") from error
        except FloatingPointError as error:
            raise Refused(500, str(error)) from error
        counted.end([reply.counts for reply in replies])
        return Json(writer.whole(replies))


class _Counted:
    """Logs a request as one line of JSON at its end, without what was said unless that was asked for."""

    def __init__(self, request: HttpRequest, client: str, started: float, contents: bool) -> None:
        self._request, self._client, self._started = request, client, started
        self._contents = contents

    async def of(self, events: AsyncIterator[tuple[int, EngineEvent]]) -> AsyncIterator[tuple[int, EngineEvent]]:
        from ..text.events import Done

        counts: list[Done] = []
        try:
            async for index, event in events:
                if isinstance(event, Done):
                    counts.append(event)
                yield index, event
        finally:
            await events.aclose()  # type: ignore[attr-defined]
            self.end(counts)

    def end(self, counts: Sequence[Any]) -> None:
        line: Object = {
            "path": self._request.url.path,
            "client": self._client,
            "seconds": round(time.perf_counter() - self._started, 3),
            "prompt_tokens": sum(one.prompt_tokens for one in counts),
            "cached_tokens": sum(one.cached_tokens for one in counts),
            "reply_tokens": sum(one.thinking_tokens + one.answer_tokens for one in counts),
            "finish_reason": [one.finish_reason for one in counts] or "closed",
        }
        if self._contents:
            line["body"] = self._request._body.decode(errors="replace")
        log.info(json.dumps(line, ensure_ascii=False))


def _contract_page(app: FastAPI) -> str:
    rows = [
        f"<tr><td>{method.upper()}<td>{html.escape(path)}<td>{html.escape(what.get('description', ''))}"
        for path, methods in app.openapi()["paths"].items()
        for method, what in methods.items()
    ]
    return (
        "<!doctype html><meta charset=utf-8><title>exaone4_mlx</title><h1>exaone4_mlx</h1>"
        f"<table>{''.join(rows)}</table><p>Fields and their meanings: <a href=openapi.json>openapi.json</a></p>"
    )
