"""--prompt-cache-dir of the commands, and its flags."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from commands import errors, output, process

from exaone4_mlx import fit
from exaone4_mlx.cli.help import byte_count
from exaone4_mlx.cli.prompt_cache import open_prefix_store

PROMPT = ["--prompt", "Who are you?", "--json"]


def cached(capsys: Any, *arguments: str) -> int:
    return json.loads(output(capsys, *PROMPT, *arguments))["cached_tokens"]


@pytest.mark.heavy
def test_generate_continues_from_the_folder(capsys: Any, tmp_path: Path) -> None:
    folder = ["--prompt-cache-dir", str(tmp_path / "store"), "--system-prompt", "You are kind. " * 20]
    assert cached(capsys, *folder) == 0
    assert list((tmp_path / "store").iterdir())
    assert cached(capsys, *folder) > 50
    assert cached(capsys, *folder, "--prompt", "3 + 4?") > 50, "another question after the same system prompt"
    assert cached(capsys, *folder, "--builtin-tools", "--kv-bits", "8") == 0, "another cache layout"


@pytest.mark.heavy
def test_chat_continues_from_the_folder(tmp_path: Path) -> None:
    given = ["chat", "--model", "demo", "--temp", "0", "--json", "--prompt-cache-dir", tmp_path / "store"]
    runs = [json.loads(process(*given, input="Who are you?\n", text=True).stdout) for _ in range(2)]
    assert runs[0]["text"] == runs[1]["text"]
    assert (runs[0]["cached_tokens"], runs[1]["cached_tokens"]) == (0, runs[1]["prompt_tokens"] - 1)


def test_flags_that_do_not_fit_together_are_refused(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    given = ["generate", "--model", "demo", "--prompt", "Hello"]
    assert "needs --prompt-cache-dir" in errors(capsys, "serve", "--model", "demo", "--prompt-cache-dir-bytes", "1GB")
    assert "file" in errors(capsys, *given, "--prompt-cache-dir", str(tmp_path / "file"))
    with pytest.raises(SystemExit):
        errors(capsys, *given, "--prompt-cache-dir", str(tmp_path), "--prompt-cache-file", str(tmp_path / "cache"))
    assert "exclude each other" in capsys.readouterr().err


def test_a_store_has_what_the_model_leaves_by_default() -> None:
    flags = {"prompt_cache_bytes": None, "prompt_cache_dir": None, "prompt_cache_dir_bytes": None}
    for memory, expected in ((0.07, 0.07e9 / 8), (1, None), (100, 4 << 30)):
        needs = fit("demo", memory=memory, metal=False)
        limit = open_prefix_store(argparse.Namespace(**flags), needs).max_bytes
        assert limit == int(expected or needs.memory_bytes - needs.total_bytes), memory
    assert open_prefix_store(argparse.Namespace(**flags | {"prompt_cache_bytes": 5}), None).max_bytes == 5


def test_sizes_are_numbers_with_units() -> None:
    sizes = {"500": 500, "500MB": 5 * 10**8, "2G": 2 * 10**9, "1.5 gb": 15 * 10**8, "4GiB": 4 << 30, "0": 0}
    assert {text: byte_count(text) for text in sizes} == sizes
    for wrong in ("", "-1", "much", "1e9", "5 XB"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 500MB"):
            byte_count(wrong)
