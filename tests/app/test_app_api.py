"""The app's endpoints for programs, against a running server: what there is, what is refused, and many at once."""

from __future__ import annotations

import gc
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]  # Gradio's own warnings are not ours
gradio = pytest.importorskip("gradio", reason="the app needs the extra `app`")

from exaone4_mlx import BUILTIN_TOOLS, fit, load  # noqa: E402

CLIENTS, TURNS = 8, 5
ENDPOINTS = {"/chat", "/retry", "/continue", "/undo", "/clear", "/stop", "/messages", "/state"}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from app.engine import ChatEngine, LoadedModel
    from app.models import Choice
    from app.state import AppState
    from exaone4_mlx import ConversationStore

    model, tokenizer = load("demo")
    loaded = LoadedModel(Choice("demo", "demo"), model, tokenizer, fit("demo"))
    store = ConversationStore(tmp_path_factory.mktemp("data"))
    return AppState(ChatEngine(loaded), store, tools=BUILTIN_TOOLS, api_tools=True)


@pytest.fixture(scope="module")
def address(state: Any) -> Iterator[str]:
    from app.server import PageAddress, launch_options
    from app.ui import build

    page = build(state)
    _, address, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_options(PageAddress())
    )
    yield address
    page.close()


@pytest.fixture
def client(address: str) -> Any:
    return _client(address)


def _client(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


def _get(
    address: str, path: str, host: str | None = None, method: str = "GET", **headers: str
) -> tuple[int, Any, bytes]:
    """(status, headers, body)"""
    name = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(name, timeout=10)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, {"Host": host or name, **headers})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_only_the_documented_endpoints_are_there(client: Any) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)
    assert set(endpoints["named_endpoints"]) == ENDPOINTS
    assert not endpoints["unnamed_endpoints"]


def test_every_endpoint_says_what_it_does(address: str) -> None:
    info = json.loads(_get(address, "/gradio_api/info")[2])
    assert set(info["named_endpoints"]) == ENDPOINTS
    for name, endpoint in info["named_endpoints"].items():
        assert endpoint.get("description"), name


def test_reply_streams_and_is_kept_in_the_history(client: Any) -> None:
    states = list(client.submit("Which one is bigger, 3.12 vs 3.9?", {"thinking": True}, api_name="/chat"))
    assert len(states) > 2, "it came in one piece"
    assert states[-1]["answer"] == "3.9 is bigger than 3.12." and states[-1]["thinking"]
    assert states[-1]["finish_reason"] == "stop" and states[0]["finish_reason"] is None
    said, reply = client.predict(api_name="/messages")
    assert said["content"] == "Which one is bigger, 3.12 vs 3.9?" and reply["content"] == states[-1]["answer"]
    list(client.submit(api_name="/retry"))
    assert client.predict(api_name="/undo") == said["content"]
    assert client.predict(api_name="/messages") == []


def test_tools_run_only_where_they_are_named(client: Any) -> None:
    reply = client.predict("Roll D6 dice twice!", {"tools": ["roll_dice"]}, api_name="/chat")
    assert [call["name"] for call in reply["tool_calls"]] == ["roll_dice", "roll_dice"]
    assert all(call["result"] in range(1, 7) and not call["failed"] for call in reply["tool_calls"])
    client.predict(api_name="/clear")
    assert client.predict("Roll D6 dice twice!", api_name="/chat")["tool_calls"] == []


def test_no_tool_runs_for_a_program_unless_the_app_allows_it(client: Any, state: Any, monkeypatch: Any) -> None:
    assert "roll_dice" in client.predict(api_name="/state")["tools"]
    monkeypatch.setattr(state, "api_tools", False)
    assert client.predict(api_name="/state")["tools"] == []
    with pytest.raises(Exception, match="programs may not use tools; to allow it, start the app with --api-tools"):
        client.predict("Roll D6 dice twice!", {"tools": ["roll_dice"]}, api_name="/chat")
    assert client.predict("Roll D6 dice twice!", {"tools": []}, api_name="/chat")["tool_calls"] == []


def test_a_reply_is_continued_and_begun_anew(client: Any) -> None:
    with pytest.raises(Exception, match="no turns yet"):
        client.predict(api_name="/continue")
    said = "What is the capital of Italy?"
    cut = client.predict(said, {"max_tokens": 3, "temperature": 0.01}, api_name="/chat")
    assert cut["finish_reason"] == "length"
    states = list(client.submit(api_name="/continue"))
    assert states[-1]["answer"].startswith(cut["answer"]) and len(states[-1]["answer"]) > len(cut["answer"])
    assert client.predict("The capital of Peru", api_name="/continue")["answer"].startswith("The capital of Peru")
    with pytest.raises(Exception, match="text must be a text"):
        client.predict(7, api_name="/continue")
    assert client.predict(api_name="/undo") == said
    assert client.predict(api_name="/messages") == []


@pytest.mark.parametrize(
    ("message", "options", "error"),
    [
        ("", None, "nothing to send"),
        ("Hi", {"wisdom": 1}, "there is no option 'wisdom'"),
        ("Hi", {"tools": ["rm"]}, "tools must be a list of these names: calculator"),
        ("Hi", {"temperature": -1}, "temperature must be 0 or more"),
        ("x" * 1_000_001, {}, "message must be a text of at most 1,000,000 characters"),
        ("Hi", {"max_tokens": 2**70}, "max_tokens must be a whole number"),
        ("Hi", {"max_tokens": "many"}, "max_tokens must be a whole number"),
        ("Hi", {"thinking": "yes"}, "thinking must be true or false"),
        ("word " * 9000, None, "the newest turn alone has"),
    ],
)
def test_bad_requests_are_errors_with_a_reason(client: Any, message: str, options: Any, error: str) -> None:
    with pytest.raises(Exception, match=error):
        client.predict(message, options, api_name="/chat")
    assert client.predict(api_name="/messages") == []


def test_options_that_are_null_are_the_defaults(client: Any) -> None:
    options = {"max_tokens": None, "thinking_budget": None, "temperature": None, "tools": None}
    assert client.predict("Hello", options, api_name="/chat")["finish_reason"] == "stop"


def test_conversations_of_programs_are_not_written(client: Any, state: Any) -> None:
    client.predict("Hello", api_name="/chat")
    assert state.store.list() == []


def test_other_sites_cannot_speak_for_this_computer(address: str) -> None:
    assert _get(address, "/")[0] == 200
    assert _get(address, "/", host="evil.example")[0] == 400, "DNS rebinding"


def test_pages_of_other_sites_can_ask_for_nothing(address: str) -> None:
    own = address.rstrip("/")
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/run/sent"):
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            assert _get(address, path, method="POST", Origin=origin)[0] == 403, (path, origin)
        assert _get(address, path, method="POST", Origin=own)[0] != 403, path


def test_request_without_a_session_of_its_own_is_refused(address: str, state: Any) -> None:
    before = state.open_tabs
    status, _, _ = _get(address, "/gradio_api/run/messages", method="POST", **{"Content-Type": "application/json"})
    assert status >= 400
    assert state.open_tabs == before


def test_uploads_are_bounded_and_many_replies_can_be_watched() -> None:
    from app.server import PageAddress, launch_options

    options = launch_options(PageAddress())
    guarded = launch_options(PageAddress(password="written down"))
    assert "auth" not in options and guarded["auth"]("anyone", "written down") and not guarded["auth"]("anyone", "x")
    assert options["max_file_size"] == 64 * 2**20
    assert options["max_threads"] > 200, "Gradio would do 40 things at once, and a reply that is looked at is one"


def test_page_may_load_nothing_from_elsewhere(address: str) -> None:
    _, headers, page = _get(address, "/")
    assert "default-src 'self'" in (headers["content-security-policy"] or "")
    assert b"fonts.googleapis.com" not in page


def test_page_can_be_installed(address: str) -> None:
    manifest = json.loads(_get(address, "/manifest.json")[2])
    assert manifest["name"] == "EXAONE" and manifest["icons"]


def _converse(address: str, number: int, failures: list[str]) -> None:
    """Turns about a name that is this client's own; every second client stops one half way."""
    name = ["Mina", "Clara", "Oscar", "Laura", "Diego", "Hugo", "Elena", "Marco"][number]
    try:
        client = _client(address)
        said = [
            f"My name is {name}.",
            "What is 348 + 275?",
            "What is the capital of Peru?",
            "Hello",
            "What is my name?",
        ]
        for turn, text in enumerate(said[:TURNS]):
            if number % 2 and turn == 3:
                job = client.submit("x " * 3000, api_name="/chat")
                time.sleep(0.3)
                client.predict(api_name="/stop")
                stopped = job.result(timeout=120)
                if stopped["finish_reason"] not in ("cancelled", "stop", "length", "repetition"):
                    failures.append(f"{number}: ended with {stopped['finish_reason']}")
                client.predict(api_name="/undo")
                continue
            answer = client.predict(text, api_name="/chat")["answer"]
        if name not in answer:
            failures.append(f"{number}: the user named {name}, and the answer is {answer!r}")
        turns = [m["content"] for m in client.predict(api_name="/messages") if m["role"] == "user"]
        expected = [text for i, text in enumerate(said) if not (number % 2 and i == 3)]
        if turns != expected:
            failures.append(f"{number}: its history holds {turns}")
    except Exception as error:
        failures.append(f"{number}: {type(error).__name__}: {error}")


def test_eight_programs_at_once_keep_their_own_histories_and_leave_no_memory_behind(address: str, state: Any) -> None:
    from app.models import memory_in_use

    failures: list[str] = []
    _settled(state)
    before = memory_in_use()
    threads = [threading.Thread(target=_converse, args=(address, i, failures)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert not any(thread.is_alive() for thread in threads), "a client waits for ever"
    assert not failures
    _settled(state)
    after = memory_in_use()
    print(f"MLX memory before {before / 1e6:.1f} MB, after {after / 1e6:.1f} MB")
    assert after <= before + 1_000_000, "what the clients' caches held was not freed"


def _settled(state: Any) -> None:
    """Waits until all clients are gone, and nothing is held for them."""
    gc.collect()
    deadline = time.monotonic() + 60
    while state.open_tabs and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.2)
    assert not state.open_tabs, "clients that are gone still count"
    state.engine.prefixes.clear()  # which has what was read, for conversations that are opened again
    gc.collect()


def test_screenshots_exist_for_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for picture in ("light", "dark", "phone", "korean", "tools"):
        assert (Path(__file__).parents[2] / f"docs/pictures/{picture}.png").is_file(), picture
    assert "docs/pictures/light.png" in readme
