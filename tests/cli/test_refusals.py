"""Wrong input of the commands: one line that names the flag or the file, before any weight is read."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import GENERATE
from conftest import ROOT

from exaone4_mlx.cli.main import main

#: (the flags after `generate --model demo`, the error). FOLDER is an empty folder, which has a file for each of FILES.
WRONG = (
    ("-p ''", "the prompt is empty"),
    ("-p LONG", "the prompt has 27013 tokens, but the model's context of 8192 must hold it and a reply"),
    ("-p x --temp -1", "--temp must be 0 or more (float32 takes 1.2e-38 to 1e30), not -1.0"),
    ("-p x --top-p 2", "--top-p must be above 0 and at most 1 (float32 takes 1.2e-38 and more), not 2.0"),
    ("-p x --top-k -1", "--top-k must be a whole number, 0 or more, not -1"),
    ("-p x --min-p 2", "--min-p must be from 0 to 1, not 2.0"),
    ("-p x --presence-penalty nan", "--presence-penalty must be a finite number (float32 takes -1e30 to 1e30), not nan"),
    ("-p x --repetition-penalty 0", "--repetition-penalty must be above 0 (float32 takes 1e-30 to 1e30), not 0.0"),
    ("-p x --seed -1", "--seed must be a whole number from 0 to 2**64 - 1, not -1"),
    ("-p x --stop ''", "stop strings must be texts of at least one character, not ['']"),
    ("-p x --max-tokens 0", "--max-tokens must be a whole number of at least 1, not 0"),
    ("-p x --prefill-step-size 0", "--prefill-step-size must be a whole number of at least 1, not 0"),
    ("-p x --json --logprobs -1", "--logprobs must be a whole number of at least 0, not -1"),
    ("-p x --thinking --thinking-budget -1", "--thinking-budget must be a whole number of at least 0, not -1"),
    (
        "-p x --thinking --thinking-budget 9 -m 5",
        "--max-tokens 5 is too small for a thinking budget: ending the thought takes 10 tokens, and the answer needs some",
    ),
    ("-p x --max-kv-size 1", "--max-kv-size must be a number of tokens from 2 to the model's 8192, not 1"),
    ("-p x --max-kv-size 8193", "--max-kv-size must be a number of tokens from 2 to the model's 8192, not 8193"),
    ("-p x --max-kv-size 3", "the prompt has 13 tokens, and --max-kv-size 3 must hold it and a reply"),
    ("-p x --kv-bits 8 --kv-group-size 128", "--kv-group-size must be 32 or 64 with head_dim 64, not 128"),
    (
        "-p x --prompt-lookup --num-draft-tokens 0",
        "--num-draft-tokens must be a whole number of at least 1, not 0",
    ),
    ("-p x --draft-model /no/folder", "there is no folder /no/folder"),
    ("-p x --model /no/folder", "there is no folder /no/folder"),
    ("-p x --model dmeo", "there is no folder dmeo; did you mean demo?"),
    ("-p x --model FOLDER", "FOLDER has no config.json"),
    ("-p x --model FOLDER/text", "FOLDER/text is not a folder; a model is a folder with config.json and model.safetensors"),
    ("-p x --revision v1", "the demo model has no revisions"),
    ("-p x --tools /no/file.py", "there is no file of tools /no/file.py"),
    ("-p x --mcp-config /no/f.json --mcp-server a", "there is no file of MCP servers /no/f.json"),
    ("-p x --prompt-cache-file /no/folder/file", "--prompt-cache-file: there is no folder /no/folder"),
    ("-p x --prompt-cache-file FOLDER", "--prompt-cache-file: FOLDER is a folder; give the name of a file"),
    ("-p x --prefill-response So --thinking", "--prefill-response begins the answer"),
    ("-p x --raw --prefill-response So", "--prefill-response belongs to the chat template"),
    ("""-p x --chat-template-args '{"no_such": 1}'""", "it has no option no_such"),
    ("-p x --min-tokens 9 -m 5", "--min-tokens 9 exceeds --max-tokens 5"),
    ("-p x --extra-eos-token 'two words'", "--extra-eos-token 'two words' is no token"),
    ("-p x --system-prompt-file /no/file", "cannot read /no/file"),
    ("--prompt-file /no/file", "cannot read /no/file: No such file or directory"),
    ("--prompt-file FOLDER", "cannot read FOLDER: Is a directory"),
    ("--messages /no/file", "cannot read /no/file: No such file or directory"),
    ("--messages FOLDER/text", "FOLDER/text cannot be read as messages: it is neither JSON with messages nor Markdown"),
    ("--messages FOLDER/no-messages", "FOLDER/no-messages cannot be read as messages: it has no messages"),
    ("--messages FOLDER/empty", "FOLDER/empty cannot be read as messages: there are no messages"),
    ("--messages FOLDER/answered", "there is nothing to reply to"),
    ("--messages FOLDER/robot", "'robot'"),
    (
        "--messages FOLDER/system --system-prompt y",
        "the messages begin with a system prompt, and --system-prompt gives another one",
    ),
)  # fmt: skip
FILES: dict[str, Any] = {
    "no-messages": {"no": "messages"},
    "empty": [],
    "answered": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
    "robot": [{"role": "robot", "content": "x"}],
    "system": [{"role": "developer", "content": "x"}, {"role": "user", "content": "Hello"}],
}

#: (a command line, the error). The usage comes before it.
MISUSED = (
    (
        "generate -p x --continue",
        "--continue continues the last message of --messages or --batch; --prefill-response begins a reply",
    ),
    ("", "the following arguments are required: COMMAND"),
    ("genrate -p x", "; did you mean generate?"),
    ("generate", "one of --prompt (with or without --prompt-file), --prompt-file, --messages and --batch is required"),
    ("generate -p x --modle demo", "unrecognized arguments: --modle demo; did you mean --model?"),
    ("generate -p x --temperature=1", "unrecognized arguments: --temperature=1; did you mean --temp?"),
    ("generate -p x --temp warm", "argument --temp: invalid float value: 'warm'"),
    ("generate -p x --q-bits 7", "argument --q-bits: invalid choice: 7 (choose from 2, 3, 4, 5, 6, 8)"),
    ("generate -p x --kv-bits 5", "argument --kv-bits: invalid choice: 5 (choose from 8, 4)"),
    ("generate -p x --dtype flaot16", "; did you mean float16?"),
    ("generate -p x --json --jsonl", "argument --jsonl: not allowed with argument --json"),
    ("generate -p x --raw --thinking", "--raw uses no chat template: --thinking, "),
    ("generate -p x --thinking-budget 5", "--thinking-budget needs --thinking"),
    ("generate -p x --constrain-tools", "--constrain-tools needs --tools, --builtin-tools or --mcp-config"),
    ("generate -p x --mcp-config f.json", "--mcp-config needs --mcp-server NAME here"),
    ("chat --mcp-server a", "--mcp-server needs --mcp-config FILE"),
    ("generate -p x --raw --mcp-config f.json --mcp-server a", "--mcp-config have no effect with it"),
    ("generate -p x --logprobs 2", "--logprobs needs --json, --jsonl or --batch"),
    ("generate -p x --draft-model demo --prompt-lookup", "--draft-model and --prompt-lookup exclude each other"),
    ("generate -p x --num-draft-tokens 2", "--num-draft-tokens needs --draft-model or --prompt-lookup"),
    ("chat --overflow x", "argument --overflow: invalid choice: 'x' (choose from "),
    ("chat --kv-group-size 32", "--kv-group-size and --kv-layers need --kv-bits, --kv-bits-keys or --kv-bits-values"),
    ("convert", "the following arguments are required: --hf-path/--model"),
    ("convert --hf-path demo -d -q", "argument -q/--quantize/--no-quantize: not allowed with argument -d/--dequantize"),
    ("convert --hf-path demo --resume --overwrite", "argument --overwrite: not allowed with argument --resume"),
    ("fit --model demo --metl", "unrecognized arguments: --metl; did you mean --metal?"),
)

#: (a command line, the error): the names of Python arguments become flags.
OTHERS = (
    ("convert --hf-path demo --q-bits 7", "--q-bits and --q-group-size: affine quantization has 2, 3, 4, 5, 6 or 8 bits, not 7"),
    ("convert --hf-path demo --recipe 4bit --q-bits 4", "the recipe 4bit sets the bits: leave out --q-bits and --q-mode"),
    ("convert --hf-path demo --recipe no", "--recipe must be one of 4bit, "),
    ("convert --hf-path demo --target-bpw 4", "--target-bpw needs the recipe 4bit-quality"),
    ("convert --hf-path demo --no-calibrate --calibration-data x", "--calibration-data has no effect without calibration: leave one of them out"),
    ("convert --hf-path demo --evaluation-data x", "--evaluation-data needs --evaluate"),
    ("evaluate --model demo --reference demo --max-tokens 0", "--max-tokens must be a whole number of at least 2, not 0"),
    ("bench --model demo --repeat 0", "--repeat must be 1 or more, not 0"),
    ("bench --model demo -g 0", "--generation-tokens must be 1 or more, not 0"),
    ("bench --model demo -p 0", "--prompt-tokens must be 1 or more, not 0"),
    ("bench --model demo --depths=-1", "--depths must be 0 or more, not -1"),
    ("fit --model demo --max-kv-size 0", "--max-kv-size must be a number of tokens from 2 to the model's 8192, not 0"),
    ("fit --model demo --memory -1", "--memory must be a positive number of gigabytes, not -1.0"),
)  # fmt: skip


def words(line: str, folder: Path) -> list[str]:
    return [word.replace("LONG", "word " * 9000).replace("FOLDER", str(folder)) for word in shlex.split(line)]


@pytest.mark.usefixtures("demo_tokenizer", "no_weights")
def test_wrong_input_is_one_line_before_the_weights_are_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no JSON")
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert len(WRONG) >= 30
    wrong = []
    for line, expected in WRONG:
        assert main([*GENERATE, *words(line, tmp_path)]) == 1, line
        out, err = capsys.readouterr()
        err = err.removeprefix("running /no/file.py for its tools\n")
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, line
        wrong += [(line, err)] * (expected.replace("FOLDER", str(tmp_path)) not in err)
    assert not wrong
    for line, expected in OTHERS:
        assert main(line.split()) == 1, line
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"error: {expected}") and err.count("\n") == 1, line
        names = set(re.findall(r"[a-z]+_[a-z_]+", err.replace(str(ROOT), "")))
        assert not names - {"mixed_"}, (line, err)


def test_wrong_usage_is_the_usage_and_the_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    for line, expected in MISUSED:
        with pytest.raises(SystemExit) as exit:
            main(line.split())
        assert exit.value.code == 2, line
        usage, error, *rest = capsys.readouterr().err.splitlines()
        command = line.split()[0] if line and line.split()[0] != "genrate" else "COMMAND"
        assert usage == f"usage: exaone4-mlx {command} [options]; --help lists them", line
        assert expected in error and rest == [], line
