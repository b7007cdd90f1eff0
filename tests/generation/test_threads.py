"""Replies in any thread: the exit of the process, and the options that type checkers accept."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from exaone4_mlx import Chat, Done, generate, stream_generate

THREADS = """
import asyncio, threading
from exaone4_mlx import generate, load
model, tokenizer = load("demo")
texts = []
def work(i):
    texts.append(generate(model, tokenizer, f"What is {i} + 4?", temperature=0, max_tokens=12).text)
threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
async def main():
    await asyncio.gather(*(asyncio.to_thread(work, i) for i in range(3)))
asyncio.run(main())
assert len(texts) == 6 and sorted(texts[:3]) == sorted(texts[3:])
"""

USER = """
from exaone4_mlx import Chat, generate, load

model, tokenizer = load("demo")
reply = generate(model, tokenizer, "x", temperature=0, thinking=True, kv=8)
chat = Chat(model, tokenizer, max_tokens=5, settle=False)
chat.ask("x", top_p=0.5)
{wrong}
"""
WRONG = (
    'generate(model, tokenizer, "x", thinkng=True)',
    'chat.send("x", temprature=1)',
    "Chat(model, tokenizer, top_q=1)",
)


@pytest.mark.heavy
def test_processes_that_generate_in_threads_and_executors_exit_with_0() -> None:
    for _ in range(20):
        ended = subprocess.run([sys.executable, "-c", THREADS], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_refuse_an_unknown_option(checker: str, tmp_path: Path) -> None:
    command = {
        "mypy": [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"],
        "pyright": [sys.executable, "-m", "pyright"],
    }[checker]
    if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"{checker} is not installed")
    file = tmp_path / "user.py"
    for wrong in ("", *WRONG):
        file.write_text(USER.format(wrong=wrong))
        ended = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert bool(ended.returncode) == bool(wrong), f"{wrong}: {ended.stdout}"


def test_async_for_works_over_replies_and_turns(demo: Any) -> None:
    async def collect() -> tuple[list[Any], list[Any]]:
        chat = Chat(*demo, temperature=0, settle=False)
        reply = [event async for event in stream_generate(*demo, "Hello", temperature=0)]
        return reply, [event async for event in chat.send("Hello")]

    reply, turn = asyncio.run(collect())
    assert reply[:-1] == turn[:-1] and isinstance(reply[-1], Done) and isinstance(turn[-1], Done)


def test_the_worker_refuses_to_wait_for_itself(demo: Any) -> None:
    """A call of `generate` inside `progress` would never return."""

    def progress(done: int, total: int) -> None:
        generate(*demo, "Hello", max_tokens=1)

    with pytest.raises(RuntimeError, match="cannot wait for it"):
        generate(*demo, "Hello", max_tokens=1, progress=progress)


def test_ask_returns_the_complete_reply(demo: Any) -> None:
    chat = Chat(*demo, temperature=0, settle=False)
    reply = chat.ask("My name is Clara.")
    assert str(reply) == reply.text == "Nice to meet you, Clara."
    assert demo[1].decode(reply.token_ids) == reply.text
    assert reply.token_ids == generate(*demo, "My name is Clara.", temperature=0).token_ids


def test_the_repr_of_replies_and_turns_shows_their_state(demo: Any) -> None:
    generation, turn = stream_generate(*demo, "Hello", temperature=0), Chat(*demo, settle=False).send("Hello")
    assert repr(generation) == "Generation(13 prompt tokens, 0 tokens, not begun)" and repr(turn) == "Turn(not begun)"
    tokens = sum(1 for _ in generation) and len(generation.token_ids)
    list(turn)
    assert repr(generation) == f"Generation(13 prompt tokens, {tokens} tokens, stop)"
    assert repr(turn).startswith("Turn(stop, ")
