"""Each adapter is a model for clients: its replies are its own, also beside others, and it reads no prefix of others."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from adapters import random_adapter

from exaone4_mlx import PrefixStore, generate, load
from exaone4_mlx.model.adapter import Adapter, check_adapters

pytest.importorskip("uvicorn", reason="the server needs the extra `server`")

SYSTEM = {"role": "system", "content": "You are a helpful assistant, and you answer in a few words."}
GREEDY = {"temperature": 0, "max_tokens": 10}
NAMES = ("demo", "one", "two")


@pytest.fixture(scope="module")
def demo() -> Any:
    return load("demo", dtype="float32")


@pytest.fixture(scope="module")
def adapters(demo: Any) -> dict[str, Adapter]:
    """A LoRA of one layer and a DoRA of all, which change what is said a little."""
    config = demo[0].config
    found = {
        "one": random_adapter("lora", config, seed=3, num_layers=1, scale=12.0),
        "two": random_adapter("dora", config, seed=4, scale=4.0),
    }
    for adapter in found.values():
        check_adapters([(adapter, 1.0)], config)
    return found


def request(server: Any, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def ask(server: Any, model: str, question: str) -> tuple[str, int]:
    """The reply of a model, and the number of cached tokens."""
    messages = [SYSTEM, {"role": "user", "content": question}]
    status, answer = request(server, "POST", "/v1/chat/completions", {"model": model, "messages": messages, **GREEDY})
    assert status == 200 and answer["model"] == model, answer
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["message"]["content"], cached


def expected(demo: Any, adapter: Adapter | None, question: str) -> str:
    """The reply of the model with this adapter alone."""
    model, tokenizer = demo
    model.set_adapters([] if adapter is None else adapter)
    try:
        return generate(model, tokenizer, [SYSTEM, {"role": "user", "content": question}], **GREEDY).text
    finally:
        model.set_adapters()


@pytest.mark.heavy
def test_replies_of_several_adapters_at_once_are_those_of_each_alone(
    demo: Any, adapters: dict[str, Adapter], serving: Any
) -> None:
    questions = ("Who are you?", "What is the capital of France?")
    wanted = {(name, q): expected(demo, adapters.get(name), q) for name in NAMES for q in questions}
    assert len({wanted[name, questions[0]] for name in NAMES}) == 3, "the adapters do not differ"
    with serving(adapters=adapters) as server, ThreadPoolExecutor(6) as threads:
        asked = [(name, question) for question in questions for name in NAMES]
        replies = list(threads.map(lambda one: ask(server, *one)[0], asked))
        assert dict(zip(asked, replies, strict=True)) == wanted
        assert not server.engine.model.adapters
        base, *others = (form._bare for form in (server.engine.model.fused(), *server.engine._forms.values()))
        for layers in others:
            assert all(a is b for (_, a), (_, b) in zip(base, layers, strict=True)), "the weights are there twice"


@pytest.mark.parametrize("is_broken", [False, True])
def test_an_adapter_reads_no_prefix_of_another(
    adapters: dict[str, Adapter], serving: Any, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    """The broken variant takes all forms of the model for one."""
    root = PrefixStore.root
    if is_broken:
        monkeypatch.setattr(
            PrefixStore, "root", lambda self, model, fused, *more: root(self, model, model.fused(), *more)
        )
    with serving(adapters=adapters) as server:
        first = [ask(server, name, "Who are you?")[1] for name in NAMES]
        assert (first == [0, 0, 0]) is not is_broken
        again = [ask(server, name, "Who are you?")[1] for name in NAMES]
        assert min(again) > 10, "an adapter reuses its own prefixes"


def test_models_are_listed_and_other_names_are_refused(adapters: dict[str, Adapter], serving: Any) -> None:
    with serving(adapters=adapters) as server:
        listed = request(server, "GET", "/v1/models")[1]["data"]
        assert tuple(entry["id"] for entry in listed) == NAMES
        assert request(server, "GET", "/v1/models/two")[1]["id"] == "two"
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        assert request(server, "POST", "/v1/chat/completions", body)[1]["model"] == "demo", "without a name"
        for path, more in {
            "/v1/chat/completions": body,
            "/v1/messages": body,
            "/v1/messages/count_tokens": {"messages": body["messages"]},
            "/v1/completions": {"prompt": "Hello", "max_tokens": 1},
            "/v1/responses": {"input": "Hello"},
        }.items():
            status, answer = request(server, "POST", path, {**more, "model": "three"})
            assert status == 404 and "the models are demo, one, two, not 'three'" in answer["error"]["message"], path
        assert request(server, "GET", "/v1/models/three")[0] == 404
