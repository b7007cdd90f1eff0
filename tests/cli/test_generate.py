"""`generate`: what it reads, what it prints, what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from commands import GENERATE, TerminalText, errors, output
from mcp_servers import config, stdio
from pdfs import pdf

from exaone4_mlx import Conversation
from exaone4_mlx.cli.main import main
from exaone4_mlx.storage.transcript import to_markdown
from exaone4_mlx.text.tokenizer import StreamDecoder

CLARA = [
    {"role": "user", "content": "My name is Clara."},
    {"role": "assistant", "content": "Nice to meet you, Clara."},
    {"role": "user", "content": "What is my name?"},
]


@pytest.mark.usefixtures("demo_model")
def test_decomposed_text_is_composed_unless_the_flag_says_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    composed, decomposed = (unicodedata.normalize(form, "대한민국의 수도는?") for form in ("NFC", "NFD"))
    for how in ([], ["--raw"]):
        counts = [
            json.loads(output(capsys, "-p", prompt, "--json", "-m", "1", *how, *more))["prompt_tokens"]
            for prompt, more in ((composed, []), (decomposed, []), (composed, ["--no-nfc"]), (decomposed, ["--no-nfc"]))
        ]
        assert counts[0] == counts[1] == counts[2] < counts[3]


def test_text_files_are_read_in_any_usual_encoding_and_pdfs_as_their_text(
    capsys: pytest.CaptureFixture[str], prompt_given: Any, tmp_path: Path
) -> None:
    """A byte order mark is not part of the text."""
    prompt, messages = tmp_path / "prompt.txt", tmp_path / "messages.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp949"):
        prompt.write_bytes("안녕?\n".encode(encoding))
        messages.write_bytes('[{"role": "user", "content": "안녕?"}]'.encode(encoding))
        for flags in (["--prompt-file", str(prompt)], ["--messages", str(messages)]):
            assert prompt_given(*flags) == [{"role": "user", "content": "안녕?"}]
    pytest.importorskip("pypdf", reason="PDFs need the extra `pdf`")
    prompt.write_bytes(pdf(["Name the capital of Peru."]))
    assert prompt_given("--prompt-file", str(prompt)) == prompt_given("-p", "Name the capital of Peru.")
    capsys.readouterr()
    prompt.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert errors(capsys, *GENERATE, "--prompt-file", str(prompt)) == f"error: {prompt} holds no text\n"


# --- the reply --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("demo_model")
def test_the_reply_goes_to_standard_output_and_the_rest_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GENERATE, "-p", "Hello", "--max-tokens", "30"]) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert out.count("\n") == 1, "the reply and one line end"
    assert "tokens/s" in err
    assert out.strip() not in err


@pytest.mark.usefixtures("demo_model")
def test_a_thought_is_enclosed_in_tags_and_can_be_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["-p", "Hello", "--thinking", "--max-tokens", "60"]
    shown, hidden = output(capsys, *ask), output(capsys, *ask, "--hide-thinking")
    assert shown.startswith("<think>\n")
    assert shown.endswith("\n</think>\n\n" + hidden)
    cut_off = output(capsys, "-p", "Hello", "--thinking", "-m", "3")
    assert cut_off.startswith("<think>\n")
    assert "</think>" not in cut_off


@pytest.mark.usefixtures("demo_model")
def test_a_thought_is_dim_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = TerminalText()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main([*GENERATE, "-p", "Hello", "--thinking", "--max-tokens", "60"]) == 0
    thought, _, answer = screen.getvalue().partition("\x1b[0m\n\n")
    assert thought.startswith("\x1b[2m")
    assert "<think>" not in thought + answer


@pytest.mark.usefixtures("demo_model")
def test_the_terminal_does_not_stay_dim_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = StreamDecoder.feed

    def fails(decoder: StreamDecoder, id: int) -> str:
        fed.append(id)
        if len(fed) == 3:
            raise RuntimeError("out of memory")
        return feed(decoder, id)

    screen = TerminalText()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(StreamDecoder, "feed", fails)
    assert main([*GENERATE, "-p", "Hello", "--thinking"]) == 1
    assert screen.getvalue().rstrip("\n").endswith("\x1b[0m")


@pytest.mark.usefixtures("demo_model")
def test_json_is_one_object_with_the_fields_of_reply(capsys: pytest.CaptureFixture[str]) -> None:
    reply = json.loads(output(capsys, "-p", "Hello", "--thinking", "--json", "--max-tokens", "60"))
    assert set(reply) == {
        "model", "text", "thinking", "tool_calls", "finish_reason", "prompt_tokens", "cached_tokens",
        "thinking_tokens", "answer_tokens", "prefill_seconds", "decode_seconds", "thinking_seconds", "peak_bytes",
        "drafted_tokens", "accepted_tokens",
    }  # fmt: skip
    assert reply["model"] == "demo"
    assert reply["thinking"]


@pytest.mark.usefixtures("demo_model")
def test_jsonl_is_one_object_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "-p", "Hello", "--thinking", "--jsonl", "--max-tokens", "60").splitlines()
    kinds = [json.loads(line)["type"] for line in lines]
    assert kinds[0] == "thinking"
    assert kinds[-1] == "done"
    assert set(kinds) >= {"thinking", "done"}


@pytest.mark.usefixtures("demo_model")
def test_logprobs_accompany_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(output(capsys, "-p", "Hello", "--json", "--logprobs", "2", "-m", "3"))
    assert [len(token["top"]) for token in whole["logprobs"]] == [2, 2, 2]
    assert "".join(token["text"] for token in whole["logprobs"]) == whole["text"]
    assert all(token["logprob"] == token["top"][0]["logprob"] <= 0 for token in whole["logprobs"]), "greedy"
    lines = output(capsys, "-p", "Hello", "--jsonl", "--logprobs", "2", "-m", "3", "--raw").splitlines()
    assert [event["type"] for event in map(json.loads, lines)].count("logprobs") == 3


@pytest.mark.usefixtures("demo_model")
def test_stop_strings_and_raw_prompts(capsys: pytest.CaptureFixture[str], demo: Any) -> None:
    ask = ["-p", "Hello", "--max-tokens", "20"]
    plain = output(capsys, *ask).strip()
    word = plain.split()[1]
    assert output(capsys, *ask, "--stop", word).strip() == plain.partition(word)[0].strip()
    raw = json.loads(output(capsys, "-p", "Hello there", "--raw", "--json", "--max-tokens", "3"))
    assert raw["prompt_tokens"] == len(demo[1].encode("Hello there"))


@pytest.mark.usefixtures("demo_model")
def test_a_thinking_budget_ends_the_thought(capsys: pytest.CaptureFixture[str]) -> None:
    reply = json.loads(output(capsys, "-p", "Hello", "--thinking", "--thinking-budget", "2", "--json"))
    assert reply["thinking"].endswith("I will answer now.")
    assert reply["text"]


def test_a_reply_that_repeats_itself_is_stopped_with_advice(
    hf_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exaone4_mlx.text.reply.LoopDetector.TOKENS", 64)
    tensors = mx.load(str(hf_folder / "model.safetensors"))
    tensors["model.norm.weight"] *= 0  # all logits are 0, and the first token is drawn every time
    mx.save_safetensors(str(hf_folder / "model.safetensors"), dict(tensors))
    assert main(["generate", "--model", str(hf_folder), "--temp", "0", "-p", "Hello"]) == 0
    err = capsys.readouterr().err
    assert "the reply repeats itself" in err
    assert "--presence-penalty 1.5" in err


# --- the prompt -------------------------------------------------------------------------------------------------


@pytest.fixture
def prompt_given(monkeypatch: pytest.MonkeyPatch, demo_tokenizer: None) -> Callable[..., Any]:
    """prompt_given(arguments) is the list of messages that reaches the chat template."""
    seen: list[Any] = []

    def stop(tokenizer: Any, messages: Any, **options: Any) -> list[int]:
        seen.append(messages)
        raise ValueError("stopped by the test")

    def given(*arguments: str) -> Any:
        assert main([*GENERATE, *arguments]) == 1
        return seen[-1]

    monkeypatch.setattr("exaone4_mlx.generation.request.prompt_ids", stop)
    return given


def test_a_prompt_is_taken_literally(prompt_given: Any) -> None:
    r"""mlx-lm turns a typed \n into a line end, and print("a\nb") into broken code."""
    assert prompt_given("-p", r'print("a\nb\t")') == [{"role": "user", "content": r'print("a\nb\t")'}]


def test_a_prompt_from_a_file_or_a_pipe_loses_its_last_line_end(
    prompt_given: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("  안녕\n하세요\r\n".encode())
    expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  안녕\n하세요"}]
    assert prompt_given("--prompt-file", str(file), "--system-prompt", "Be brief.") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert prompt_given("-p", "-")[0]["content"] == "  안녕\n하세요"


def test_an_instruction_and_a_file_are_one_prompt_and_a_file_may_hold_the_system_prompt(
    prompt_given: Any, tmp_path: Path
) -> None:
    file, system = tmp_path / "poem.txt", tmp_path / "system.txt"
    file.write_text("The sea.\n")
    system.write_text("Be brief.\n")
    given = prompt_given("-p", "Translate:", "--prompt-file", str(file), "--system-prompt-file", str(system))
    assert given == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Translate:\n\nThe sea."}]


def test_messages_come_from_a_file_a_saved_chat_an_export_or_a_pipe(
    prompt_given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "messages.json"
    export = to_markdown(dataclasses.replace(Conversation.new(), messages=CLARA))
    for content in (
        json.dumps(CLARA),
        json.dumps({"messages": CLARA}),
        "\n".join(map(json.dumps, CLARA)) + "\n\n",
        export,
    ):
        file.write_text(content)
        assert prompt_given("--messages", str(file)) == CLARA
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(CLARA).encode())))
    assert prompt_given("--messages", "-") == CLARA


@pytest.mark.usefixtures("demo_model")
def test_an_answer_follows_a_schema_a_grammar_or_a_regular_expression(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("llguidance")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}')
    grammar.write_text('start: "yes" | "no"\n')
    assert json.loads(output(capsys, "-p", "Hello", "--json-schema", str(schema))).keys() == {"ok"}
    assert output(capsys, "-p", "Hello", "--grammar", str(grammar)) in ("yes\n", "no\n")
    assert re.fullmatch("[0-9]{3}\n", output(capsys, "-p", "Hello", "--regex", "[0-9]{3}"))


@pytest.mark.heavy
@pytest.mark.usefixtures("demo_model")
def test_a_begun_answer_is_continued(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """By --prefill-response or as the last message. Only the continuation is printed, as mlx-lm does."""
    whole = output(capsys, "-p", "What is the capital of Korea?").strip()
    begun = whole[: whole.index(" ", 8)]
    reply = output(capsys, "-p", "What is the capital of Korea?", "--prefill-response", begun)
    assert begun + reply.rstrip("\n") == whole
    file = tmp_path / "talk.json"
    asked = {"role": "user", "content": "What is the capital of Korea?"}
    file.write_text(json.dumps([asked, {"role": "assistant", "content": begun}]))
    assert begun + output(capsys, "--messages", str(file), "--continue").rstrip("\n") == whole
    tools = output(capsys, "--messages", str(file), "--continue", "--builtin-tools", "--json")
    assert json.loads(tools)["text"], "with tools, too"


# --- tools ------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.usefixtures("demo_model")
def test_tools_run_and_standard_output_holds_the_reply_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "dice.py"
    file.write_text(
        'print("LOADED")\n\n\n'
        "def roll_dice(max_num: int) -> int:\n"
        '    """Roll a dice with the number 1 to N. User can select the number N.\n\n'
        '    Args:\n        max_num: Max number of the dice\n    """\n'
        '    print("PRINTED")\n'
        "    return max_num - 1\n"
    )
    assert main([*GENERATE, "-p", "Roll D6 dice twice!", "--tools", str(file), "--thinking"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("<think>\n") and out.endswith("</think>\n\nYou rolled 5 and 5.\n")
    assert not any(text in out for text in ("<tool_call>", "PRINTED", "LOADED")), out
    assert f"running {file} for its tools" in err
    assert err.count("[calls roll_dice(max_num=6)]\n") == err.count("[roll_dice returned: 5]\n") == 2
    assert (err.count("PRINTED"), err.count("LOADED")) == (2, 1)
    reply = json.loads(output(capsys, "-p", "Roll D6 dice twice!", "--tools", str(file), "--json"))
    assert [result["content"] for result in reply["tool_results"]] == [5, 5]
    assert reply["text"].endswith("You rolled 5 and 5.")


@pytest.mark.heavy
@pytest.mark.usefixtures("demo_model")
def test_the_builtin_tools_run(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "-p", "What is 1234 * 56?", "--builtin-tools", "--jsonl").splitlines()
    result = next(event for event in map(json.loads, lines) if event["type"] == "tool_result")
    assert (result["content"], result["failed"]) == (69104, False)


@pytest.mark.heavy
@pytest.mark.usefixtures("demo_model")
def test_the_tools_of_a_named_mcp_server_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    file = str(config(tmp_path, a=stdio("stdio"), b=stdio("fails")))
    assert main([*GENERATE, "-p", "Roll D6 dice twice!", "--mcp-config", file, "--mcp-server", "a"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "You rolled 4 and 4." and "mcp_server_script.py stdio" in err and "MCP server b" not in err
    assert main([*GENERATE, "-p", "Hello", "--mcp-config", file, "--mcp-server", "b"]) == 1
    assert "error: the MCP server b has ended; its last message: ModuleNotFound" in capsys.readouterr().err
    assert main([*GENERATE, "-p", "Hello", "--mcp-config", file, "--mcp-server", "c"]) == 1
    assert "has no MCP server 'c'; it has a, b" in capsys.readouterr().err


# --- the prompt cache, and caches in general --------------------------------------------------------------------


def test_a_prompt_cache_file_is_reused_and_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hf_folder: Path, edit_json: Any
) -> None:
    file = tmp_path / "cache"
    ask = ["-p", "What is my name?", "--system-prompt", "The user is called Clara.", "--json"]
    ask += ["--prompt-cache-file", str(file)]
    first, second = json.loads(output(capsys, *ask)), json.loads(output(capsys, *ask))
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, second["prompt_tokens"] - 1)
    assert first["text"] == second["text"]
    edit_json(hf_folder / "config.json", rms_norm_eps=1e-4)
    err = errors(capsys, "generate", "--model", str(hf_folder), *ask)
    assert "belongs to another model: config, weights differ" in err
    file.write_bytes(file.read_bytes()[:-5])
    assert main([*GENERATE, *ask]) == 0
    assert "warning: the prompt cache" in capsys.readouterr().err
    assert json.loads(output(capsys, *ask))["cached_tokens"] > 0


@pytest.mark.usefixtures("demo_model")
def test_a_prompt_cache_that_cannot_be_written_is_a_warning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exaone4_mlx.generation.prompt_cache.PromptCache.save", full)
    assert main([*GENERATE, "-p", "Hello", "--prompt-cache-file", str(tmp_path / "cache")]) == 0
    out, err = capsys.readouterr()
    assert out
    assert "warning: cannot write the prompt cache" in err and "No space left on device" in err


@pytest.mark.usefixtures("demo_model")
def test_the_caches_hold_at_most_max_kv_size_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    """Unlike mlx-lm, where a rotating cache would drop the first tokens, and has no effect on this model."""
    for raw in ([], ["--raw"]):
        ask = ["-p", "Hello there", *raw, "--json"]
        whole = json.loads(output(capsys, *ask, "-m", "30"))
        limit = whole["prompt_tokens"] + 4
        cut = json.loads(output(capsys, *ask, "--max-kv-size", str(limit)))
        assert (cut["finish_reason"], cut["answer_tokens"]) == ("length", 4)
        assert whole["text"].startswith(cut["text"])
        err = errors(capsys, *GENERATE, *ask, "--max-kv-size", str(limit - 4))
        assert f"--max-kv-size {limit - 4} must hold it and a reply" in err


@pytest.mark.usefixtures("demo_model")
def test_quantized_caches_are_used_and_match_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    make = type(demo[0]).make_cache
    monkeypatch.setattr(type(demo[0]), "make_cache", lambda self, kv=None: made.append(kv) or make(self, kv))
    file = tmp_path / "cache"
    ask = ["-p", "Hello", "--prompt-cache-file", str(file), "-m", "3"]
    for raw in ([], ["--raw"]):
        made.clear()
        output(capsys, "-p", "Hello", "-m", "1", "--kv-bits-values", "4", *raw)
        assert {(kv.key_bits, kv.value_bits) for kv in made} == {(None, 4)}, "without a file"
        output(capsys, *ask, *raw, "--kv-bits", "8")
        quantized_bytes = file.stat().st_size
        assert "has another cache layout" in errors(capsys, *GENERATE, *ask, *raw, "--kv-bits", "4")
        file.unlink()
        output(capsys, *ask, *raw)
        assert file.stat().st_size > quantized_bytes
        file.unlink()


@pytest.mark.usefixtures("demo_model")
def test_drafts_do_not_change_the_reply(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "exaone4_mlx.generation.draft.DraftScheduler.choose", lambda self: 2
    )  # independent of the speed here
    for raw in ([], ["--raw"]):
        ask = ["-p", "Hello Hello Hello", "-m", "8", *raw]
        expected = output(capsys, *ask)
        for drafter in (["--draft-model", "demo", "--num-draft-tokens", "3"], ["--prompt-lookup"]):
            assert main([*GENERATE, *ask, *drafter]) == 0
            out, err = capsys.readouterr()
            assert out == expected
            drafted = re.search(r"\(\d of [1-9] draft tokens accepted\)", err)
            assert drafted or (drafter, raw) == (["--prompt-lookup"], []), (drafter, raw)
