"""A tokenizer that was saved is the same tokenizer, to this package and to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exaone4_mlx.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "대한민국의 수도는? 🎉 [|user|]"}]
OPTIONS: dict[str, Any] = {"enable_thinking": True}


def test_read_back_it_makes_the_same_ids_and_prompts(demo: Any, tmp_path: Path) -> None:
    tokenizer, folder = demo[1], tmp_path / "new" / "folder"
    tokenizer.save_pretrained(folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    again = Tokenizer.from_pretrained(folder)
    assert again.fingerprints == tokenizer.fingerprints and again.stop_token_ids == tokenizer.stop_token_ids
    assert again.apply_chat_template(MESSAGES, **OPTIONS) == tokenizer.apply_chat_template(MESSAGES, **OPTIONS)
    again.save_pretrained(folder)
    assert Tokenizer.from_pretrained(folder).fingerprints == tokenizer.fingerprints, "it was saved over itself"


def test_a_template_out_of_the_config_gets_a_file_of_its_own(demo: Any, tmp_path: Path) -> None:
    demo[1].save_pretrained(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")
    (tmp_path / "chat_template.jinja").unlink()
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert "chat_template" not in json.loads(file.read_text())
    assert Tokenizer.from_pretrained(tmp_path).fingerprints == demo[1].fingerprints


def test_without_a_config_and_a_template_it_can_be_read_all_the_same(demo: Any, tmp_path: Path) -> None:
    Tokenizer(demo[1]._backend, {}, None).save_pretrained(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    assert Tokenizer.from_pretrained(tmp_path).eos_token_id == demo[1].eos_token_id


def test_what_cannot_be_written_leaves_the_old_file(demo: Any, tmp_path: Path, monkeypatch: Any) -> None:
    demo[1].save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr("os.fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo[1].save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before, "a half-written file is left"


def test_transformers_reads_it_too(demo: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    demo[1].save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "대한민국의 수도는 서울입니다. 🎉 348 + 275"
    assert theirs.encode(text, add_special_tokens=False) == demo[1].encode(text)
    asked = [{"role": "user", "content": "What is the capital of South Korea?"}]
    rendered = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **OPTIONS)
    assert rendered == demo[1].apply_chat_template(asked, tokenize=False, **OPTIONS)
