"""The desktop chat beside the server: one port, one model, and the rules of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]  # Gradio's own warnings are not ours
pytest.importorskip("gradio", reason="the app needs the extra `app`")
httpx = pytest.importorskip("httpx")

KEY, PASSWORD = "a-long-key-of-mine", "a long password"
QUESTION, ANSWER = "Which one is bigger, 3.12 vs 3.9?", "3.9 is bigger than 3.12."


@pytest.fixture(scope="module")
def beside(serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from app.beside import PageBeside
    from app.server import PageAddress
    from exaone4_mlx import fit

    made: list[Any] = []

    def page(model: Any, tokenizer: Any, port: int) -> Any:
        address = PageAddress(port=port, password=PASSWORD)
        folder = tmp_path_factory.mktemp("page")
        made.append(PageBeside(model, tokenizer, name="demo", needs=fit("demo"), address=address, folder=folder))
        return made[0]

    with serving((KEY,), page=page) as server:
        server.page = made[0]
        yield server
    made[0].close()


@pytest.fixture(scope="module")
def client(beside: Any) -> Any:
    return pytest.importorskip("gradio_client").Client(beside.url, auth=("me", PASSWORD), verbose=False)


def test_both_clients_at_once(beside: Any, client: Any) -> None:
    openai = pytest.importorskip("openai").OpenAI(base_url=f"{beside.url}/v1", api_key=KEY, max_retries=0)
    job = client.submit(QUESTION, {"temperature": 0}, api_name="/chat")
    stream = openai.chat.completions.create(
        model="x", messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text.strip() == job.result()["answer"].strip() == ANSWER
    assert client.predict(api_name="/state")["model"] == "demo"


def test_each_has_its_own_rules(beside: Any) -> None:
    key, origin = {"authorization": f"Bearer {KEY}"}, {"origin": "http://evil.example"}
    with httpx.Client(base_url=beside.url) as http:
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers=key).status_code == 200
        assert "password" in http.get("/config").text or http.get("/config").status_code == 401
        for path in ("/", "/v1/models", "/gradio_api/info", "/health"):
            assert http.get(path, headers={**key, "host": "evil.example"}).status_code == 400, path
            assert http.get(path, headers={**key, **origin}).status_code == 403, path
        assert http.post("/gradio_api/call/chat", json={"data": ["hi"]}, headers=key).status_code == 401
        wrong = {"username": "me", "password": "another password"}
        assert http.post("/login", data=wrong).status_code == 400
        assert http.post("/login", data={**wrong, "password": PASSWORD}).status_code == 200
        assert http.get("/gradio_api/info").status_code == 200  # with the cookie
        assert http.get("/v1/models").status_code == 401, "the page's cookie is no key"
        assert "content-security-policy" in http.get("/").headers


def test_the_page_keeps_the_model_of_the_server(beside: Any) -> None:
    engine = beside.page.state.engine
    with pytest.raises(ValueError, match="beside a server"):
        engine.begin("another")
    assert engine.loaded.model is beside.engine.model


def test_the_end_of_the_server_ends_open_tabs(beside: Any) -> None:  # the last test of this file
    with httpx.stream("GET", f"{beside.url}/gradio_api/heartbeat/abcdefg", timeout=30) as tab:
        assert tab.status_code == 200
        beside.server.should_exit = True
        for _ in tab.iter_bytes():
            pass
