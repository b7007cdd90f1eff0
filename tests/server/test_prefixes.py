"""What one request read is reused by the next: of the same key, of all keys if that is wanted, and after a kill."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from exaone4_mlx import PrefixStore, generate, load
from exaone4_mlx.server.access import Access
from exaone4_mlx.server.address import Address

KEY, OTHER = "a-long-key-of-mine", "another-long-key"
SYSTEM = {"role": "system", "content": "You are a helpful assistant, and you answer in a few words. " * 8}
QUESTIONS = (
    "My name is Mina.",
    "Who are you?",
    "What is the capital of South Korea?",
    "3 + 4?",
    "Which one is bigger, 3.12 vs 3.9?",
    "What is my name?",
)


def ask(port: int, messages: Any, key: str = KEY) -> tuple[str, int, int]:
    """The answer, the tokens of the prompt, and those of them that were cached."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"messages": messages, "temperature": 0, "max_tokens": 60}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    usage = answer["usage"]
    text = answer["choices"][0]["message"]["content"]
    return text, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.heavy
def test_two_keys_share_nothing_unless_that_is_wanted(serving: Any) -> None:
    for shared in (False, True):
        options = {"salt_of": lambda client: ""} if shared else {}
        with serving((KEY, OTHER), **options) as server:
            messages = [SYSTEM, user("Who are you?")]
            answers = [ask(server.port, messages, key) for key in (KEY, OTHER, OTHER, KEY)]
            cached, length = [answer[2] for answer in answers], answers[0][1]
            assert cached == [0, length - 1 if shared else 0, length - 1, length - 1]
            assert len({answer[0] for answer in answers}) == 1


def test_a_second_conversation_reads_the_system_prompt_no_more(serving: Any) -> None:
    with serving() as server:
        _, length, cached = ask(server.port, [SYSTEM, user("Who are you?")])
        assert cached == 0
        text, longer, cached = ask(server.port, [SYSTEM, user("3 + 4?")])
        assert 0 < longer - cached < 20 < length
        following = [SYSTEM, user("3 + 4?"), {"role": "assistant", "content": text}, user("Who are you?")]
        _, longer, cached = ask(server.port, following)
        assert 0 < longer - cached < 20, "nor its own first turn"


def test_the_salt_of_a_key_does_not_depend_on_its_place() -> None:
    one, two = (Access(Address(port=1), keys) for keys in ((KEY, OTHER), (OTHER, KEY)))
    assert one.salt("key 1") == two.salt("key 2") != one.salt("key 2")
    assert Access(Address(port=1)).salt("") == ""
    assert KEY not in one.salt("key 1")


def start(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A server of the demo in a process of its own, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "exaone4_mlx",
        "serve",
        "--model",
        "demo",
        "--dtype",
        "float32",
        "--port",
        f"{port}",
    ]
    command += ["--prompt-cache-dir", f"{folder}", "--api-key", KEY]
    with (folder.parent / "log").open("a") as log:
        process = subprocess.Popen(command, stderr=log, text=True, cwd=ROOT)
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    return process, port


@pytest.mark.heavy
def test_after_kill_9_under_load_no_token_is_wrong_and_old_conversations_go_on(tmp_path: Path) -> None:
    """The answers of a server are those of the model alone, and an old conversation reads only its new message."""
    model, tokenizer = load("demo", dtype="float32")
    expected: dict[str, str] = {}
    rng, wrong = random.Random(0), []

    def check(messages: list[dict[str, str]], answer: str) -> None:
        key = json.dumps(messages)
        if key not in expected:
            expected[key] = generate(model, tokenizer, messages, temperature=0, max_tokens=60).text
        if answer != expected[key]:
            wrong.append((messages, answer, expected[key]))

    folder = tmp_path / "store"
    old: list[list[dict[str, str]]] = []
    for killing in range(4):
        process, port = start(folder)
        try:
            for k, conversation in enumerate(old):
                conversation.append(user(rng.choice(QUESTIONS)))
                text, length, cached = ask(port, conversation)
                check(conversation, text)
                assert 0 < length - cached < 30, f"conversation {k} of {len(old)}, after {killing} kills"
                conversation.append({"role": "assistant", "content": text})
            begun = [SYSTEM, user(f"My name is {rng.choice(['Mina', 'Jisoo', 'Tom'])}.")]
            text = ask(port, begun)[0]
            check(begun, text)
            old.append([*begun, {"role": "assistant", "content": text}])
            sizes = [-1, 0]
            while sizes[-1] != sizes[-2]:  # until all is written
                time.sleep(0.5)
                sizes.append(len(list(folder.glob("*.prefix"))))
            answers: list[tuple[list[dict[str, str]], str]] = []

            def client(seed: int, port: int = port, answers: list[Any] = answers) -> None:
                rng, messages = random.Random(seed), [SYSTEM]
                try:
                    while True:
                        if len(messages) > 8:
                            messages = [SYSTEM]
                        messages = [*messages, user(rng.choice(QUESTIONS))]
                        text = ask(port, messages)[0]
                        answers.append((messages, text))
                        messages = [*messages, {"role": "assistant", "content": text}]
                except (OSError, http.client.HTTPException, ValueError):
                    return  # killed

            threads = [threading.Thread(target=client, args=(10 * killing + k,)) for k in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(2 + 3 * rng.random())
            process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
            assert answers
            for messages, text in answers:
                check(messages, text)
        finally:
            process.kill()
            process.wait()
    assert not wrong, wrong[0]
    PrefixStore(folder=folder)
    assert not list(folder.glob(".*.partial")), "half files of killed processes are removed"
