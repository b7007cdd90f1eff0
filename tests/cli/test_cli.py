"""The command line, as a user and as a script meet it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import ROOT

from exaone4_mlx.cli import loading, main as cli
from exaone4_mlx.cli.main import main
from exaone4_mlx.text.tokenizer import StreamDecoder

GENERATE = ["generate", "--model", "demo", "--temp", "0", "--dtype", "float32"]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exaone4_mlx", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False, **options)


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of a command that must succeed."""
    assert main([*GENERATE, *arguments]) == 0
    return capsys.readouterr().out


# --- the reply ----------------------------------------------------------------


def test_reply_goes_to_standard_output_and_the_rest_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GENERATE, "-p", "Hello", "--max-tokens", "30"]) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert out.count("\n") == 1, "the reply and one line end"
    assert "tokens/s" in err
    assert out.strip() not in err


def test_thought_stands_between_its_tags_and_can_be_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "-p", "Hello", "--thinking", "--max-tokens", "60")
    hidden = output(capsys, "-p", "Hello", "--thinking", "--max-tokens", "60", "--hide-thinking")
    assert shown.startswith("<think>\n")
    assert shown.endswith("\n</think>\n\n" + hidden)


def test_thought_is_dim_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main([*GENERATE, "-p", "Hello", "--thinking", "--max-tokens", "60"]) == 0
    thought, _, answer = screen.getvalue().partition("\x1b[0m\n\n")
    assert thought.startswith("\x1b[2m")
    assert "<think>" not in thought + answer


def test_json_is_one_object_with_the_fields_of_reply(capsys: pytest.CaptureFixture[str]) -> None:
    reply = json.loads(output(capsys, "-p", "Hello", "--thinking", "--json", "--max-tokens", "60"))
    assert set(reply) == {
        "model", "text", "thinking", "tool_calls", "finish_reason", "prompt_tokens", "cached_tokens",
        "thinking_tokens", "answer_tokens", "prefill_seconds", "decode_seconds", "thinking_seconds", "peak_bytes",
        "drafted_tokens", "accepted_tokens",
    }  # fmt: skip
    assert reply["model"] == "demo"
    assert reply["thinking"]


def test_jsonl_is_one_object_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        json.loads(line)
        for line in output(capsys, "-p", "Hello", "--thinking", "--jsonl", "--max-tokens", "60").splitlines()
    ]
    assert events[0]["type"] == "thinking"
    assert events[-1]["type"] == "done"
    assert {event["type"] for event in events} >= {"thinking", "done"}


@pytest.mark.usefixtures("loaded")
def test_logprobs_go_with_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(output(capsys, "-p", "Hello", "--json", "--logprobs", "2", "-m", "3"))
    assert [len(token["top"]) for token in whole["logprobs"]] == [2, 2, 2]
    assert "".join(token["text"] for token in whole["logprobs"]) == whole["text"]
    assert all(token["logprob"] == token["top"][0]["logprob"] <= 0 for token in whole["logprobs"]), "greedy"
    lines = output(capsys, "-p", "Hello", "--jsonl", "--logprobs", "2", "-m", "3", "--raw").splitlines()
    assert [event["type"] for event in map(json.loads, lines)].count("logprobs") == 3


def test_stop_and_raw(capsys: pytest.CaptureFixture[str], demo: Any) -> None:
    plain = output(capsys, "-p", "Hello", "--max-tokens", "20").strip()
    word = plain.split()[1]
    assert (
        output(capsys, "-p", "Hello", "--max-tokens", "20", "--stop", word).strip() == plain.partition(word)[0].strip()
    )
    raw = json.loads(output(capsys, "-p", "Hello there", "--raw", "--json", "--max-tokens", "3"))
    assert raw["prompt_tokens"] == len(demo[1].encode("Hello there"))


# --- the prompt ---------------------------------------------------------------


def prompt_given(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The messages that reach the template."""
    seen: list[Any] = []

    def stop(tokenizer: Any, messages: Any, **options: Any) -> list[int]:
        seen.append(messages)
        raise ValueError("seen enough")

    monkeypatch.setattr("exaone4_mlx.generation.request.prompt_ids", stop)
    assert main([*GENERATE, *arguments]) == 1
    return seen[0]


def test_prompt_is_taken_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    r"""mlx-lm turns a typed \n into a line end, and print("a\nb") into broken code."""
    given = prompt_given(monkeypatch, "-p", r'print("a\nb\t")')
    assert given == [{"role": "user", "content": r'print("a\nb\t")'}]


def test_prompt_from_a_file_or_a_pipe_loses_its_last_line_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("  안녕\n하세요\r\n".encode())
    expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  안녕\n하세요"}]
    assert prompt_given(monkeypatch, "--prompt-file", str(file), "--system-prompt", "Be brief.") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert prompt_given(monkeypatch, "-p", "-")[0]["content"] == "  안녕\n하세요"


# --- memory -------------------------------------------------------------------


@pytest.fixture
def read(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer that every test has, in place of one that is read anew."""
    monkeypatch.setattr("exaone4_mlx.text.tokenizer.Tokenizer.from_pretrained", lambda folder: demo[1])


@pytest.fixture
def loaded(demo: Any, read: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of the model."""
    monkeypatch.setattr("exaone4_mlx.model.load.load_model", lambda folder, **options: demo[0])


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights would be read, the command ends."""

    def load_model(*args: Any, **options: Any) -> None:
        raise RuntimeError("the weights are being read")

    monkeypatch.setattr("exaone4_mlx.model.load.load_model", load_model)


@pytest.fixture
def machine(read: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """machine(limit, physical) has so many megabytes, of which a model may have `limit`."""

    def make(limit: float, physical: float) -> None:
        monkeypatch.setattr("exaone4_mlx.measure.machine.memory_of_this_machine", lambda: int(limit * 1e6))
        monkeypatch.setattr("exaone4_mlx.measure.machine.physical_memory", lambda: int(physical * 1e6))

    return make


@pytest.mark.usefixtures("unloaded")
def test_what_will_not_fit_is_said_with_what_helps(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights are 11 MB, and the caches of 8,192 tokens 10 MB."""
    machine(15, 100)

    def told(*flags: str) -> list[str]:
        assert main(["generate", "--model", "demo", "-p", "Hello", *flags]) == 1
        *lines, error = capsys.readouterr().err.splitlines()
        assert error == "error: the weights are being read"
        return lines

    warning, helps = told()
    assert warning == (
        "warning: this may take 22 MB (11 MB of weights, 10 MB of caches at 8,192 tokens, 450 kB to read the prompt), "
        "and a model may have 15 MB here"
    )
    fitting = int(re.search(r"--max-kv-size (\d+) fits", helps)[1])  # type: ignore[index]
    assert "18 MB with --kv-bits 8; 14 MB with --q-bits 4; --ignore-memory says nothing of it" in helps
    for quiet in (["--ignore-memory"], ["--max-kv-size", str(fitting)], ["--q-bits", "4"], ["-m", "20"]):
        assert told(*quiet) == [], quiet
    assert told("--max-kv-size", str(fitting + 1)), "one token more"
    warning, helps = told("-m", "20", "--draft-model", "demo")
    assert "12 MB of draft model" in warning and "without --draft-model" in helps
    machine(100, 200)
    assert told() == []
    assert main(["chat", "--model", "demo"]) == 1, "which may read as much as the context holds"
    assert "at 8,192 tokens, 252 MB to read the prompt" in capsys.readouterr().err or mx.metal.is_available()


@pytest.mark.usefixtures("unloaded")
def test_weights_beyond_the_memory_are_refused_before_they_are_read(
    machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(5, 8)
    for command in (["generate", "-p", "Hello"], ["chat"]):
        assert main([*command, "--model", "demo"]) == 1
        assert capsys.readouterr().err == (
            "error: the weights have 11 MB, and this machine has 8 MB of memory; with --q-bits 4 they have 3 MB; "
            "--ignore-memory loads them all the same\n"
        )
        assert main([*command, "--model", "demo", "--ignore-memory"]) == 1
        assert capsys.readouterr().err == "error: the weights are being read\n"


@pytest.mark.usefixtures("unloaded")
def test_weights_beyond_the_memory_are_not_even_downloaded(
    machine: Any, hf_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(hf_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (hf_folder / "model.safetensors").unlink()
    command = ["generate", "--model", "somebody/something-large", "-p", "Hello"]
    machine(5, 8)
    assert main(command) == 1
    assert "error: the weights have 11 MB, and this machine has 8 MB" in capsys.readouterr().err
    assert asked == [["config.json"]]
    for extra in (["--ignore-memory"], ["--q-bits", "4", "-m", "2"]):
        main([*command, *extra])
        assert "*.json" in asked[-1], "everything is downloaded"


def test_a_mac_says_how_models_get_more(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(8_000, 16_000)
    assert list(loading._more_memory(9_000_000_000)) == []
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert list(loading._more_memory(9_000_000_000)) == [
        "sudo sysctl iogpu.wired_limit_mb=8704 lets models have as much"
    ]
    assert list(loading._more_memory(15_000_000_000)) == [], "the system needs some"


@pytest.mark.usefixtures("loaded")
def test_caches_hold_no_more_than_max_kv_size(capsys: pytest.CaptureFixture[str]) -> None:
    """Unlike mlx-lm, where a rotating cache would drop what came first, and on this model does nothing at all."""
    for raw in ([], ["--raw"]):
        ask = ["-p", "Hello there", *raw, "--json"]
        whole = json.loads(output(capsys, *ask, "-m", "30"))
        limit = whole["prompt_tokens"] + 4
        cut = json.loads(output(capsys, *ask, "--max-kv-size", str(limit)))
        assert (cut["finish_reason"], cut["answer_tokens"]) == ("length", 4)
        assert whole["text"].startswith(cut["text"])
        assert main([*GENERATE, *ask, "--max-kv-size", str(limit - 4)]) == 1
        assert f"and --max-kv-size of {limit - 4} must hold it and a reply: make it shorter" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_quantized_caches_are_those_of_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    make = type(demo[0]).make_cache
    monkeypatch.setattr(type(demo[0]), "make_cache", lambda self, kv=None: made.append(kv) or make(self, kv))
    for raw in ([], ["--raw"]):
        output(capsys, "-p", "Hello", "-m", "1", "--kv-bits-values", "4", *raw)
        assert {(kv.key_bits, kv.value_bits) for kv in made} == {(None, 4)}, "without a file"
        made.clear()
    ask = ["-p", "Hello", "--prompt-cache-file", str(tmp_path / "cache"), "-m", "3"]
    for raw in ([], ["--raw"]):
        output(capsys, *ask, *raw, "--kv-bits", "8")
        first = (tmp_path / "cache").stat().st_size
        assert main([*GENERATE, *ask, *raw, "--kv-bits", "4"]) == 1
        assert "has another cache layout" in capsys.readouterr().err
        (tmp_path / "cache").unlink()
        output(capsys, *ask, *raw)
        assert (tmp_path / "cache").stat().st_size > first
        (tmp_path / "cache").unlink()


@pytest.mark.usefixtures("loaded")
def test_drafts_reach_the_reply(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exaone4_mlx.generation.speculate.Pace.choose", lambda self: 2)  # whatever steps take here
    for raw in ([], ["--raw"]):
        ask = ["-p", "Hello Hello Hello", "-m", "8", *raw]
        expected = output(capsys, *ask)
        for drafter in (["--draft-model", "demo", "--num-draft-tokens", "3"], ["--prompt-lookup"]):
            assert main([*GENERATE, *ask, *drafter]) == 0
            out, err = capsys.readouterr()
            assert out == expected
            assert re.search(r"\(\d of [1-9] drafted ones accepted\)", err) or (drafter, raw) == (
                ["--prompt-lookup"],
                [],
            )


@pytest.mark.usefixtures("unloaded")
def test_a_draft_model_of_another_tokenizer_is_refused_before_anything_is_loaded(
    hf_folder: Path, edit_json: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chat template of its own is no other tokenizer."""
    (hf_folder / "chat_template.jinja").write_text("other")
    assert main([*GENERATE, "-p", "Hello", "--draft-model", str(hf_folder)]) == 1
    assert capsys.readouterr().err == "error: the weights are being read\n"
    tokenizer = json.loads((hf_folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (hf_folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for command in ([*GENERATE, "-p", "Hello"], ["chat", "--model", "demo"], ["fit", "--model", "demo"]):
        assert main([*command, "--draft-model", str(hf_folder)]) == 1
        assert f"error: the draft model {hf_folder} has another tokenizer than " in capsys.readouterr().err
    edit_json(hf_folder / "config.json", vocab_size=4000)
    assert main([*GENERATE, "-p", "Hello", "--draft-model", str(hf_folder)]) == 1
    assert "has a vocabulary of 4000 tokens" in capsys.readouterr().err


def test_an_unknown_flag_shows_the_usage_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("generate -p x", "chat", "convert --hf-path x", "fit --model x"):
        with pytest.raises(SystemExit, match="2"):
            main([*command.split(), "--no-such-flag"])
        err = capsys.readouterr().err
        assert err.startswith(f"usage: exaone4-mlx {command.split()[0]} ") and "arguments: --no-such-flag" in err


# --- errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", ""], "error: the prompt is empty"),
        (["-p", "word " * 9000], "context of 8192 must hold it and a reply: make it shorter, or ask about one part"),
        (["-p", "x", "--temp", "-1"], "error: temperature must be 0 or more, not -1.0"),
        (["-p", "x", "--top-p", "2"], "error: top_p must be above 0 and at most 1, not 2.0"),
        (["-p", "x", "--q-bits", "7"], "bits, not 7"),
        (["-p", "x", "--max-kv-size", "1"], "--max-kv-size must be a number of tokens from 2 to the 8192"),
        (["-p", "x", "--max-kv-size", "8193"], "--max-kv-size must be a number of tokens from 2 to the 8192"),
        (["-p", "x", "--kv-bits", "8", "--kv-group-size", "128"], "kv_group_size must be 32 or 64 with head_dim 64"),
        (["-p", "x", "--prompt-lookup", "--num-draft-tokens", "0"], "num_draft_tokens must be a whole number"),
        (["-p", "x", "--draft-model", "/no/such/folder"], "and no hub id either"),
        (["-p", "x", "--json", "--logprobs", "-1"], "logprobs must be a whole number of at least 0, not -1"),
        (["-p", "x", "--max-tokens", "0"], "error: max_tokens must be a whole number of at least 1, not 0"),
        (["--prompt-file", "/no/such/file"], "error: cannot read /no/such/file: No such file or directory"),
        (["-p", "x", "--model", "/no/such/folder"], "and no hub id either"),
        (["-p", "x", "--tools", "/no/such/file.py"], "there is no file of tools /no/such/file.py"),
        (["-p", "x", "--thinking", "--thinking-budget", "-1"], "thinking_budget must be a whole number"),
        (
            ["-p", "x", "--thinking", "--thinking-budget", "9", "-m", "5"],
            "max_tokens 5 is too small for a thinking budget",
        ),
        (["-p", "x", "--prompt-cache-file", "/no/such/folder/file"], "there is no folder /no/such/folder"),
        (["--messages", "/no/such/file"], "error: cannot read /no/such/file: No such file or directory"),
        (["--messages", str(ROOT / "README.md")], "README.md is not JSON"),
        (["--messages", str(ROOT / "exaone4_mlx" / "demo" / "config.json")], "must hold a list of messages"),
        (["-p", "x", "--model", str(ROOT / "tests")], "has no config.json"),
    ],
)
def test_errors_are_one_line_and_exit_1(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main([*GENERATE, *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    err = err.removeprefix("running /no/such/file.py for its tools\n")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.fixture
def messages_file(tmp_path: Path) -> Callable[[Any], str]:
    def write(content: Any) -> str:
        (tmp_path / "messages.json").write_text(json.dumps(content))
        return str(tmp_path / "messages.json")

    return write


TOLD = [
    {"role": "user", "content": "My name is Clara."},
    {"role": "assistant", "content": "Nice to meet you, Clara."},
    {"role": "user", "content": "What is my name?"},
]


def test_messages_from_a_file_a_saved_chat_or_a_pipe(
    capsys: pytest.CaptureFixture[str], messages_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (TOLD, {"messages": TOLD}):
        assert output(capsys, "--messages", messages_file(content)) == "Your name is Clara.\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(TOLD).encode())))
    assert output(capsys, "--messages", "-") == "Your name is Clara.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a list of messages"),
        (TOLD[:2], "there is nothing to reply to"),
        ([{"role": "robot", "content": "x"}], "unknown role 'robot'"),
        ([{"role": "system", "content": "x"}, *TOLD], "and --system-prompt gives another"),
    ],
)
def test_messages_that_cannot_be_answered(
    capsys: pytest.CaptureFixture[str], messages_file: Any, content: Any, message: str
) -> None:
    assert main([*GENERATE, "--messages", messages_file(content), "--system-prompt", "Be brief."]) == 1
    assert message in capsys.readouterr().err or content == [{"role": "robot", "content": "x"}]


def test_tools_run_and_their_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "dice.py"
    file.write_text(
        "def roll_dice(max_num: int) -> int:\n"
        '    """Roll a dice with the number 1 to N. User can select the number N.\n\n'
        '    Args:\n        max_num: Max number of the dice\n    """\n'
        "    return max_num - 1\n"
    )
    assert main([*GENERATE, "-p", "Roll D6 dice twice!", "--tools", str(file), "--thinking"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("You rolled 5 and 5.\n")
    assert '<tool_call>{"name": "roll_dice", "arguments": {"max_num": 6}}</tool_call>' in out
    assert f"running {file} for its tools" in err
    assert err.count("[roll_dice returned: 5]") == 2
    told = json.loads(output(capsys, "-p", "Roll D6 dice twice!", "--tools", str(file), "--json"))
    assert [result["content"] for result in told["tool_results"]] == [5, 5]
    assert told["text"].endswith("You rolled 5 and 5.")


@pytest.mark.heavy
def test_builtin_tools(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "-p", "What is 1234 * 56?", "--builtin-tools", "--jsonl").splitlines()
    result = next(event for event in map(json.loads, lines) if event["type"] == "tool_result")
    assert (result["content"], result["failed"]) == (69104, False)


def test_thinking_budget(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(output(capsys, "-p", "Hello", "--thinking", "--thinking-budget", "2", "--json"))
    assert told["thinking"].endswith("I will answer now.")
    assert told["text"]


def test_prompt_cache_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, hf_folder: Path, edit_json: Any) -> None:
    file = tmp_path / "cache"
    ask = ["-p", "What is my name?", "--system-prompt", "The user is called Clara.", "--json"]
    first = json.loads(output(capsys, *ask, "--prompt-cache-file", str(file)))
    second = json.loads(output(capsys, *ask, "--prompt-cache-file", str(file)))
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, second["prompt_tokens"] - 1)
    assert first["text"] == second["text"]
    edit_json(hf_folder / "config.json", rms_norm_eps=1e-4)
    assert main(["generate", "--model", str(hf_folder), *ask, "--prompt-cache-file", str(file)]) == 1
    assert "belongs to another model: config, weights differ" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-5])
    assert main([*GENERATE, *ask, "--prompt-cache-file", str(file)]) == 0
    assert "warning: the prompt cache" in capsys.readouterr().err
    assert json.loads(output(capsys, *ask, "--prompt-cache-file", str(file)))["cached_tokens"] > 0


def test_prompt_cache_that_cannot_be_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*GENERATE, "-p", "Hello", "--prompt-cache-file", str(tmp_path)]) == 1
    assert "must be a file, and is a folder" in capsys.readouterr().err

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exaone4_mlx.generation.prompt_cache.PromptCache.save", full)
    assert main([*GENERATE, "-p", "Hello", "--prompt-cache-file", str(tmp_path / "cache")]) == 0
    out, err = capsys.readouterr()
    assert out
    assert "could not be written: No space left on device" in err


def test_loop_is_ended_with_advice(
    hf_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exaone4_mlx.generation.stopping.LoopDetector.TOKENS", 64)
    tensors = mx.load(str(hf_folder / "model.safetensors"))
    tensors["model.norm.weight"] *= 0  # all logits are 0, and the first token is drawn every time
    mx.save_safetensors(str(hf_folder / "model.safetensors"), dict(tensors))
    assert main(["generate", "--model", str(hf_folder), "--temp", "0", "-p", "Hello"]) == 0
    err = capsys.readouterr().err
    assert "ended in a loop" in err
    assert "--presence-penalty 1.5" in err


def test_prompt_errors_come_before_the_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exaone4_mlx.model.load.load_model", lambda *a, **o: pytest.fail("the weights were read"))
    assert main([*GENERATE, "-p", "word " * 9000]) == 1
    for flag, value in (("--temp", "-1"), ("--stop", ""), ("--max-tokens", "0"), ("--prefill-step-size", "0")):
        assert main([*GENERATE, "-p", "x", flag, value]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["generate"],
        ["generate", "-p", "x", "--no-such-flag"],
        ["generate", "-p", "x", "--temp", "warm"],
        ["generate", "-p", "x", "--raw", "--thinking"],
        ["generate", "-p", "x", "--raw", "--system-prompt", "y"],
        ["generate", "-p", "x", "--raw", "--builtin-tools"],
        ["generate", "-p", "x", "--thinking-budget", "5"],
        ["generate", "-p", "x", "--constrain-tools"],
        ["generate", "-p", "x", "--messages", "y"],
        ["generate", "-p", "x", "--json", "--jsonl"],
        ["generate", "-p", "x", "--logprobs", "2"],
        ["generate", "-p", "x", "--logprobs", "2", "--json", "--hide-thinking"],
        ["generate", "-p", "x", "--draft-model", "demo", "--prompt-lookup"],
        ["generate", "-p", "x", "--num-draft-tokens", "2"],
        ["generate", "-p", "x", "--kv-bits", "5"],
        ["generate", "-p", "x", "--kv-layers", "all"],
        ["chat", "--kv-group-size", "32"],
        ["convert"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: exaone4-mlx" in capsys.readouterr().err


def test_model_out_of_reach_names_the_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert main(["generate", "-p", "x"]) == 1
    err = capsys.readouterr().err
    assert "LGAI-EXAONE/EXAONE-4.0-1.2B is not in the local hub cache" in err
    assert "--model demo needs no download" in err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        main([*GENERATE, "-p", "", "--debug"])


def test_python_under_rosetta_gets_a_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(cli.platform, "machine", lambda: "x86_64")
    assert main([*GENERATE, "-p", "x"]) == 1
    assert "needs a native Python on Apple silicon" in capsys.readouterr().err


# --- a process among others ---------------------------------------------------


def test_all_fronts_are_the_same_program() -> None:
    arguments = ["--model", "demo", "-p", "Hello", "--temp", "0", "--max-tokens", "9"]
    fronts = [[sys.executable, "-m", "exaone4_mlx.generate"], [sys.executable, "-m", "exaone4_mlx", "generate"]]
    if (script := Path(sys.executable).with_name("exaone4-mlx")).exists():
        fronts.append([str(script), "generate"])
    outputs = {subprocess.run([*f, *arguments], capture_output=True, cwd=ROOT, check=True).stdout for f in fronts}
    assert len(outputs) == 1
    assert outputs != {b""}


def test_importing_a_front_runs_nothing() -> None:
    script = "import exaone4_mlx.generate, exaone4_mlx.__main__, convert; print('quiet')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "quiet\n"


def endless(hf_folder: Path, edit_json: Any) -> Path:
    """The demo as a model whose turns never end."""
    edit_json(hf_folder / "config.json", eos_token_id=0)
    edit_json(hf_folder / "tokenizer_config.json", eos_token="[PAD]")
    edit_json(hf_folder / "generation_config.json", eos_token_id=0)
    return hf_folder


def interrupted(command: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The events of a command that is interrupted once its first line is out, and its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    return [json.loads(line) for line in [first, *rest.splitlines()]], process.returncode


def test_ctrl_c_keeps_what_came_and_exits_130(hf_folder: Path, edit_json: Any) -> None:
    folder = str(endless(hf_folder, edit_json))
    command = [sys.executable, "-m", "exaone4_mlx", "generate", "--model", folder, "-p", "Hello", "--jsonl"]
    events, code = interrupted([*command, "--temp", "0"])
    assert code == 130
    assert events[0]["type"] == "answer"
    assert events[-1]["finish_reason"] == "cancelled"
    assert events[-1]["answer_tokens"] >= len(events) - 1


def test_ctrl_c_during_the_prompt_exits_130() -> None:
    script = (
        "import sys, os, signal, time; from exaone4_mlx.cli import main as cli\n"
        "from exaone4_mlx.generation.prompt_cache import PromptCache\n"
        "prefill = PromptCache.prefill\n"
        "def slow(self, ids, step, progress):\n"
        "    def told(done, total):\n"
        "        if done == step: os.kill(os.getpid(), signal.SIGINT); time.sleep(0.5)\n"
        "        progress(done, total)\n"
        "    return prefill(self, ids, step, told)\n"
        "PromptCache.prefill = slow\n"
        "sys.exit(cli.main(['generate', '--model', 'demo', '-p', 'Hello ' * 100, '--prefill-step-size', '32', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 130, done.stderr
    assert json.loads(done.stdout)["finish_reason"] == "cancelled"


def test_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "exaone4_mlx", *GENERATE, "-p", "Hello", "--jsonl"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_text_is_utf_8_whatever_the_locale_says() -> None:
    environment = os.environ | {
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "latin-1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "exaone4_mlx", *GENERATE, "-p", "안녕하세요", "--json", "-m", "30"],
        capture_output=True, cwd=ROOT, check=True, env=environment,
    )  # fmt: skip
    expected = subprocess.run(
        [sys.executable, "-m", "exaone4_mlx", *GENERATE, "-p", "안녕하세요", "--json", "-m", "30"],
        capture_output=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["text"] == json.loads(expected.stdout)["text"]


def test_prompt_that_is_no_text_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exaone4_mlx", *GENERATE, "-p", b"a\xffb"], capture_output=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (1, b"error: --prompt is not UTF-8 text\n")


def test_closed_streams_are_empty_ones() -> None:
    command = " ".join([sys.executable, "-m exaone4_mlx", *GENERATE, "-p Hello -m 3"])
    for redirection in (">&-", "2>&-", "<&-"):
        assert (
            subprocess.run(
                ["sh", "-c", f"{command} {redirection}"], capture_output=True, cwd=ROOT, check=False
            ).returncode
            == 0
        )


def test_thought_that_was_cut_off_has_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "-p", "Hello", "--thinking", "-m", "3")
    assert out.startswith("<think>\n")
    assert "</think>" not in out


def test_terminal_does_not_stay_dim_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    fed: list[int] = []
    feed = StreamDecoder.feed

    def fails(decoder: StreamDecoder, id: int) -> str:
        fed.append(id)
        if len(fed) == 3:
            raise RuntimeError("out of memory")
        return feed(decoder, id)

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(StreamDecoder, "feed", fails)
    assert main([*GENERATE, "-p", "Hello", "--thinking"]) == 1
    assert screen.getvalue().rstrip("\n").endswith("\x1b[0m")


def test_tokenizer_larger_than_the_model_is_told(
    hf_folder: Path, edit_json: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = mx.load(str(hf_folder / "model.safetensors"))
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:3000]
    mx.save_safetensors(str(hf_folder / "model.safetensors"), dict(tensors))
    edit_json(hf_folder / "config.json", vocab_size=3000)
    assert main(["generate", "--model", str(hf_folder), "-p", "Hello", "-m", "3"]) == 0
    assert "warning: the tokenizer knows 3072 tokens, the model 3000" in capsys.readouterr().err


@pytest.mark.parametrize(
    "code", ["import exaone4_mlx", "from exaone4_mlx import generate", "import exaone4_mlx.cli.main"]
)
def test_imports_stay_light(code: str) -> None:
    heavy = ("transformers", "mlx_lm", "torch", "gradio", "huggingface_hub", "numpy")
    script = f"import sys; {code}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert found.strip() == "[]"


def test_a_whole_reply_imports_nothing_heavy() -> None:
    script = (
        "import sys; from exaone4_mlx.cli.main import main; main(['generate', '--model', 'demo', '-p', 'Hello', '-m', '3']);"
        "print([n for n in ('transformers', 'mlx_lm', 'torch', 'gradio', 'huggingface_hub', 'numpy') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert found.splitlines()[-1] == "[]"


def test_help_is_quick_and_light() -> None:
    result = run("generate", "--help", env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"})
    assert result.returncode == 0
    imported = [
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time")
    ]
    assert "argparse" in imported
    assert not {"mlx.core", "tokenizers", "jinja2", "transformers"} & set(imported)


# --- convert ------------------------------------------------------------------


def test_convert_front_writes_a_folder_that_generates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "convert.py", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), "--q-bits", "8"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "bits per weight" in result.stdout
    assert main(["generate", "--model", str(tmp_path / "out"), "-p", "Hello", "--temp", "0", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.strip()
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "exists already" in again.stderr


def test_convert_can_report_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), "--no-quantize", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_weight"] == pytest.approx(16)


def test_a_conversion_that_takes_too_much_memory_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: Any
) -> None:
    machine(100, 200)
    command = ["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), "--dry-run"]
    assert main([*command, "--calibrate", "gptq"]) == 0
    told = r"warning: this takes about \d+ MB of memory at its peak, and MLX may have 100 MB here; no --calibrate takes less"
    assert re.search(told, capsys.readouterr().err)
    machine(100_000, 200_000)
    assert main([*command, "--calibrate", "gptq"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_quantizing_while_loading_says_how_to_keep_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GENERATE, "-p", "Hello", "--q-bits", "4", "-m", "3"]) == 0
    command = "exaone4-mlx convert --hf-path demo --mlx-path FOLDER --q-bits 4 --q-group-size 64 --dtype float32"
    assert f"for better ones that last: {command}" in capsys.readouterr().err


def test_progress_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def drawn(screen: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stderr", screen)
        with cli.progress_bar("reading the prompt", " tokens") as progress:
            progress(0, 100)
            time.sleep(0.6)
            progress(50, 100)
            progress(60, 100)
        return screen.getvalue()

    assert "reading the prompt" in drawn(Terminal())
    assert drawn(io.StringIO()) == ""
