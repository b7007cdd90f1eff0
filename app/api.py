"""The endpoints for programs, as `gradio_client` finds them.

Notes:
- Only these endpoints have names. The actions of the page have none, but any client that reaches the port can call
  them.
- Each client has its own conversation. It ends with the client and is never written to disk.
- The API cannot ask for approval. A tool runs only if the app was started with --api-tools and the request names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import gradio as gr

from exaone4_mlx.text.message import Message

from .render import tool_results
from .session import Session
from .settings import SAMPLING
from .state import AppState
from .work import View

WAIT_SECONDS = 0.1
MAX_MESSAGE = 1_000_000  # characters


def add_endpoints(state: AppState) -> None:
    """Adds the endpoints to the page that is being built."""
    endpoints = Endpoints(state)
    for endpoint in (
        endpoints.chat,
        endpoints.retry,
        endpoints.continue_,
        endpoints.undo,
        endpoints.clear,
        endpoints.stop,
        endpoints.messages,
        endpoints.state,
    ):
        name = endpoint.__name__.rstrip("_")
        gr.events.api(endpoint, api_name=name, queue=name != "stop", concurrency_limit=None)


class Endpoints:
    """What programs can ask for, one method for each; their docstrings are the API's documentation."""

    def __init__(self, state: AppState) -> None:
        self._state = state

    def chat(
        self, request: gr.Request, message: str, options: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """
        Sends a message in this client's conversation and streams the reply; each item is the whole reply so far.

        Parameters:
            message: the text of the user
            options: thinking (true or false), thinking_budget (tokens), tools (a list of names,
                where the app was started with --api-tools), system_prompt,
                max_tokens, and temperature, top_p, top_k, min_p, presence_penalty, frequency_penalty,
                repetition_penalty, seed; null for the defaults
        Returns:
            answer, thinking, tool_calls (a list of name, arguments, result, failed), finish_reason (null until the
            end), and stats (prompt_tokens, cached_tokens, thinking_tokens, answer_tokens and times in seconds)
        """
        session = self._session(request)
        with _errors_shown():
            if not isinstance(message, str) or len(message) > MAX_MESSAGE:
                raise ValueError(f"message must be a text of at most {MAX_MESSAGE:,} characters")
            settings = self._settings(session, options)
            session.send(message, [], settings)
        yield from self._follow(session)

    def retry(self, request: gr.Request) -> Iterator[dict[str, Any]]:
        """
        Replies to the last message again, with the same options; streams like chat.

        Returns:
            the same as chat
        """
        session = self._session(request)
        with _errors_shown():
            session.retry(session.settings)
        yield from self._follow(session)

    def continue_(self, request: gr.Request, text: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Continues the last reply of this client, with the same options; streams like chat.

        Parameters:
            text: what the reply begins with, in place of what is there; null to keep that
        Returns:
            the same as chat
        """
        session = self._session(request)
        with _errors_shown():
            if text is not None and not isinstance(text, str):
                raise ValueError("text must be a text, or null")
            session.continue_reply(session.settings, text)
        yield from self._follow(session)

    def undo(self, request: gr.Request) -> str:
        """
        Removes the last turn of this client's conversation.

        Returns:
            the text of the user in it
        """
        session = self._session(request)
        with _errors_shown():
            while session.view().undo not in ("", "send"):
                session.undo()  # a retry or a continuation of the turn
            return session.undo()

    def clear(self, request: gr.Request) -> None:
        """
        Begins another conversation for this client.
        """
        tab = self._tab(request)
        self._state.show(tab, self._state.new_session(keeps=False))

    def stop(self, request: gr.Request) -> None:
        """
        Stops the reply of this client. The text so far is kept.
        """
        self._session(request).stop()

    def messages(self, request: gr.Request) -> list[dict[str, Any]]:
        """
        The conversation of this client.

        Returns:
            OpenAI-style messages; replies carry reasoning_content, finish_reason and stats
        """
        return self._session(request).view().messages

    def state(self, request: gr.Request) -> dict[str, Any]:
        """
        The model in use, the tools that programs may use, and how full the context of this client's conversation is.

        Returns:
            model, context_limit, context_tokens, tools, running, place (how many replies come before this client's)
        """
        view = self._session(request).view()
        with _errors_shown():
            loaded = self._state.engine.loaded
        return {
            "model": loaded.choice.label,
            "context_limit": loaded.context,
            "context_tokens": view.context_tokens,
            "tools": self._tools,
            "running": view.running,
            "place": view.place,
        }

    @property
    def _tools(self) -> list[str]:
        """The tools that programs may use."""
        return self._state.tool_names if self._state.api_tools else []

    def _tab(self, request: gr.Request) -> Any:
        if not request.session_hash:
            raise gr.Error("a request needs a session_hash, which tells one client from another", print_exception=False)
        return self._state.tab(request.session_hash, keeps=False)

    def _session(self, request: gr.Request) -> Session:
        return self._tab(request).session

    def _settings(self, session: Session, options: dict[str, Any] | None) -> Any:
        given = dict(options or {})
        known = {"thinking", "thinking_budget", "tools", "system_prompt", "max_tokens", *SAMPLING}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"there is no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
        tools = given.pop("tools", None) or []
        if tools and not self._state.api_tools:
            raise ValueError("programs may not use tools; to allow it, start the app with --api-tools")
        if not isinstance(tools, list) or any(name not in self._tools for name in tools):
            raise ValueError(f"tools must be a list of these names: {', '.join(self._tools)}")
        given = {name: value for name, value in given.items() if value is not None}
        if "system_prompt" in given:
            given["system"] = given.pop("system_prompt")
        return self._state.settings.updated({**given, "use_tools": bool(tools), "tools": tools, "ask": False})

    def _follow(self, session: Session) -> Iterator[dict[str, Any]]:
        while (view := session.view()).running:
            seen = session.version
            if view.coming:
                yield _reply(view, view.coming)
            session.wait(seen, WAIT_SECONDS)
        if view.error:
            raise gr.Error(view.error, print_exception=False)
        yield _reply(view, _last_turn(view.messages))


def _reply(view: View, messages: list[Message]) -> dict[str, Any]:
    """The replies of a turn as one."""
    replies = [message for message in messages if message["role"] == "assistant"]
    calls = [
        {**call["function"], **_result(result)}
        for index, message in enumerate(messages)
        for call, result in zip_longest(message.get("tool_calls") or (), tool_results(messages, index))
        if call is not None
    ]
    stats = None if view.counts is None else {k: v for k, v in vars(view.counts).items() if k != "finish_reason"}
    return {
        "answer": _joined([reply.get("content") or "" for reply in replies]),
        "thinking": _joined([reply.get("reasoning_content", "") for reply in replies]),
        "tool_calls": calls,
        "finish_reason": None if view.running or view.counts is None else view.counts.finish_reason,
        "stats": stats,
    }


def _joined(texts: list[str]) -> str:
    """The texts of several rounds as one. A single text does not change."""
    return texts[0] if len(texts) == 1 else "\n\n".join(text.strip() for text in texts if text.strip())


def _result(message: Message | None) -> dict[str, Any]:
    if message is None:
        return {"result": None, "failed": False}
    return {"result": message["content"], "failed": bool(message.get("failed"))}


def _last_turn(messages: list[Message]) -> list[Message]:
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return messages[last + 1 :]


class _errors_shown:
    """Sends a ValueError to the client as an error of the request."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise gr.Error(str(error), print_exception=False) from error
