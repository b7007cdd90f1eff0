"""Chats that the original model answers: its own tokens after the prompts of the package."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from exaone4_mlx import Exaone4ForCausalLM, generate
from exaone4_mlx.conversion.chats import HELD_OUT_PROMPTS, PROMPTS, answering_bytes, can_answer, make_chats
from exaone4_mlx.conversion.texts import CALIBRATION, HELD_OUT, Passage, overlap, read_passages
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import open_checkpoint


def entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def passages(file: Path) -> list[Passage]:
    return [Passage("chat", one["language"], None, tuple(one["messages"])) for one in entries(file)]


def test_prompts_are_a_mix_and_those_held_out_are_others() -> None:
    for file in (PROMPTS, HELD_OUT_PROMPTS):
        languages = Counter(one["language"] for one in entries(file))
        assert min(languages[name] for name in ("en", "ko", "es")) >= len(entries(file)) // 4
        assert sum("tools" in one for one in entries(file)) >= 3
        assert sum(len(one["messages"]) > 1 for one in entries(file)) >= 4
    others = passages(PROMPTS) + read_passages(CALIBRATION) + read_passages(HELD_OUT)
    assert not overlap(passages(HELD_OUT_PROMPTS), others)


def test_chats_are_the_models_own(tmp_path: Path, demo: Any) -> None:
    """Twice the same; the greedy reply is the reply of `generate`, and a second question follows the first answer."""
    opened = open_checkpoint(DEMO_FOLDER, Exaone4ForCausalLM)
    questions = ["What is the capital of Peru?", "And of Chile?"]
    asked = [{"role": "user", "content": text} for text in questions]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"messages": asked[:number]}) for number in (2, 1, 1)))
    chats = make_chats(opened, demo[1], file)
    assert chats == make_chats(opened, demo[1], file)
    first, drawn, thinking = (demo[1].decode(ids[start:]) for ids, start in chats)
    assert first.endswith("[|endofturn|]") and "</think>" not in first + drawn and "</think>" in thinking
    ids, start = chats[0]
    answer = generate(*demo, asked[:1], temperature=0).text
    assert answer in demo[1].decode(ids[:start]) and questions[1] in demo[1].decode(ids[:start])


def test_a_model_answers_where_it_fits(monkeypatch: Any) -> None:
    opened = open_checkpoint(DEMO_FOLDER, Exaone4ForCausalLM)
    assert can_answer(opened)
    monkeypatch.setattr("exaone4_mlx.conversion.chats.memory_of_this_machine", lambda: answering_bytes(opened) - 1)
    assert not can_answer(opened)
    monkeypatch.undo()
    monkeypatch.setattr("exaone4_mlx.conversion.chats.CPU_PARAMETERS", 1000)
    assert not can_answer(opened), "without a GPU a large model takes hours"
