"""`generate --batch`: replies in order, errors of single lines, and continuation after an interruption."""

from __future__ import annotations

import fcntl
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from commands import GENERATE, errors, output

from exaone4_mlx.cli.loading import ReadyModel
from exaone4_mlx.cli.main import main
from exaone4_mlx.text.tokenizer import StreamDecoder

LINES: list[Any] = [
    {"prompt": "Hello"},
    {"id": "b", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 2, "logprobs": 0},
    "no JSON",
    {"id": 3, "prompt": "Hello", "colour": "red"},
    {"prompt": " "},
    {"prompt": "Hello", "messages": []},
    {"id": "last", "prompt": "Hello", "system_prompt": "Be brief.", "stop": ["!", "."]},
]
TIMES = ("prefill_seconds", "decode_seconds", "thinking_seconds", "peak_bytes")


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """The flags of a batch, with its input file."""
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in LINES) + "\n\n")
    return ["--batch", str(file), "-o", str(tmp_path / "out.jsonl"), "-m", "4"]


def read(asked: list[str]) -> list[dict[str, Any]]:
    """The objects of the output, without times."""
    lines = map(json.loads, Path(asked[3]).read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.usefixtures("demo_model")
def test_each_line_has_its_reply_or_its_error_in_order(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GENERATE, *asked]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "7 of 7 replies, 4 with an error" in err
    replies = read(asked)
    assert [reply["index"] for reply in replies] == list(range(7))
    assert [reply.get("id") for reply in replies] == [None, "b", None, 3, None, None, "last"]
    for index, message in (
        (2, "not JSON"),
        (3, "no option 'colour'"),
        (4, "prompt is empty"),
        (5, "prompt or messages"),
    ):
        assert message in replies[index]["error"]
    single = json.loads(output(capsys, "-p", "Hello", "-m", "4", "--json"))
    assert replies[0]["text"] == single["text"]
    assert set(replies[0]) == set(single) - {*TIMES} | {"index", "input"}, "what --json prints"
    assert (replies[1]["answer_tokens"], len(replies[1]["logprobs"])) == (2, 2), "options of the line override flags"
    assert replies[6]["prompt_tokens"] > replies[0]["prompt_tokens"]


@pytest.mark.usefixtures("demo_model")
def test_a_batch_continues_after_its_last_whole_line(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    reply = ReadyModel.reply
    monkeypatch.setattr(ReadyModel, "reply", lambda *given: made.append(given) or reply(*given))
    main([*GENERATE, *asked])
    whole, data = read(asked), Path(asked[3]).read_bytes()
    for length in (5, 30, data.index(b"\n"), len(data) - 2, len(data)):
        Path(asked[3]).write_bytes(data[:length])
        made.clear()
        assert main([*GENERATE, *asked]) == 1
        assert read(asked) == whole, length
        assert len(made) == 3 - sum("error" not in json.loads(line) for line in data[:length].split(b"\n")[:-1]), length
        assert Path(asked[3]).read_bytes().startswith(data[: data[:length].rfind(b"\n") + 1]), "finished lines stay"


@pytest.mark.usefixtures("demo_model")
def test_half_characters_stop_no_batch(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exaone4_mlx.cli.batch.reply_json", lambda *_: {"arguments": "\ud800가"})
    Path(asked[1]).write_text('{"id": "\\ud800", "prompt": "Hello"}\n{"prompt": "Hello"}')
    assert main([*GENERATE, *asked]) == 0
    assert [(reply.get("id"), reply["arguments"]) for reply in read(asked)] == [
        ("\ud800", "\ud800가"),
        (None, "\ud800가"),
    ]


@pytest.mark.usefixtures("demo_model")
def test_ctrl_c_keeps_the_lines_that_are_finished(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    feed, fed, main_thread = StreamDecoder.feed, list[int](), threading.get_ident()

    def interrupted(decoder: StreamDecoder, id: int) -> str:
        fed.append(id)
        if len(fed) == 5:  # the first token of the second reply
            signal.pthread_kill(main_thread, signal.SIGINT)
            time.sleep(0.3)
        return feed(decoder, id)

    monkeypatch.setattr(StreamDecoder, "feed", interrupted)
    asked = [*asked, "--min-tokens", "2"]
    assert main([*GENERATE, *asked, "--batch-size", "1"]) == 130
    assert [reply["index"] for reply in read(asked)] == [0]
    assert main([*GENERATE, *asked]) == 1
    assert len(read(asked)) == 7


@pytest.mark.usefixtures("demo_model")
def test_replies_made_together_are_those_made_one_after_the_other(asked: list[str]) -> None:
    main([*GENERATE, *asked, "--batch-size", "1"])
    expected = read(asked)
    Path(asked[3]).unlink()
    main([*GENERATE, *asked])
    assert read(asked) == expected


@pytest.mark.usefixtures("demo_tokenizer", "no_weights")
def test_an_output_that_another_run_writes_is_refused(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(asked[3])
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert f"--output: another run writes {path}; choose" in errors(capsys, *GENERATE, *asked)
        assert path.exists()
    assert "there is no folder nowhere" in errors(capsys, *GENERATE, *asked, "--model", "nowhere")
    assert not path.exists(), "a run that fails leaves no empty file"


def test_an_output_of_another_batch_is_refused(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(asked[3])
    for content in ("notes\n", "notes", '{"index": 0, "input": "of other flags"}\n', '{"index": 0, "total": 7}'):
        out.write_text(content)
        assert "choose another file" in errors(capsys, *GENERATE, *asked)
        assert out.read_text() == content
    asked[3] = str(out.with_name("no") / "out.jsonl")
    assert "error: --output: there is no folder" in errors(capsys, *GENERATE, *asked)
    asked[1] = asked[3]
    assert "error: cannot read" in errors(capsys, *GENERATE, *asked)
