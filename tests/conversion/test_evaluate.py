"""The quality loss of a conversion: the figures follow their definition, in the memory of one block."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from conversions import random_checkpoint

from exaone4_mlx import KVQuantization, convert, evaluate, load
from exaone4_mlx.cli.main import main
from exaone4_mlx.conversion import evaluate as evaluating
from exaone4_mlx.conversion.evaluate import divergence

TEXTS = [
    "Which one is bigger, 3.12 vs 3.9?",
    "대한민국의 수도는 서울입니다.",
    "La capital de Italia es Roma, y es muy antigua.",
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    kinds = ("en", "ko", "es")
    lines = [json.dumps({"kind": kind, "text": text}) for kind, text in zip(kinds, TEXTS, strict=True)]
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "out"
    convert("demo", folder, search=False)
    return folder


def test_a_model_has_no_loss_against_itself(texts: Path) -> None:
    found = evaluate("demo", "demo", data=texts)
    assert [row.kind for row in found.rows] == ["all", "en", "ko", "es"]
    for row in found.rows:
        assert row.mean_kl == pytest.approx(0, abs=1e-6)
        assert row.top1_agreement == row.perplexity_ratio == 1
    assert found.rows[0].interval == "1.0000 to 1.0000"
    assert {row.interval for row in found.rows[1:]} == {"–"}, "one text has no interval"
    assert found.bits_per_weight == 16


def test_figures_follow_their_definition(texts: Path, quantized: Path) -> None:
    """Computed a second time, from whole models, in Python."""
    found = evaluate(quantized, "demo", data=texts)
    (model, tokenizer), (reference, _) = load(quantized, dtype="float32"), load("demo", dtype="float32")
    kl, agrees, nll, reference_nll = [], 0, 0.0, 0.0
    for text in TEXTS:
        ids = tokenizer.encode(text)
        q, p = (log_probabilities(m(mx.array([ids]))[0]) for m in (model, reference))
        for position, token in enumerate(ids[1:]):
            one, other = p[position], q[position]
            kl.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(one, other, strict=True)))
            agrees += one.index(max(one)) == other.index(max(other))
            nll, reference_nll = nll - other[token], reference_nll - one[token]
    row = found.rows[0]
    assert row.tokens == len(kl)
    assert row.documents == 3
    assert row.mean_kl == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert row.p99_kl == pytest.approx(sorted(kl)[math.ceil(0.99 * len(kl)) - 1], rel=1e-3)
    assert row.top1_agreement == agrees / len(kl)
    assert row.perplexity == pytest.approx(math.exp(nll / len(kl)), rel=1e-3)
    assert row.perplexity_ratio == pytest.approx(math.exp((nll - reference_nll) / len(kl)), rel=1e-4)
    assert row.perplexity_ratio_low is not None and row.perplexity_ratio_high is not None
    assert row.perplexity_ratio_low <= row.perplexity_ratio <= row.perplexity_ratio_high
    assert row.perplexity_ratio_low < row.perplexity_ratio_high
    assert found.bits_per_weight == pytest.approx(4.511, abs=0.001)


def test_replies_alone_can_be_counted(tmp_path: Path, quantized: Path, texts: Path) -> None:
    """In windows of any size, the tokens of the last reply and its end count, each after the whole prompt or a part."""
    said = "The capital of Peru is Lima."
    messages = [{"role": "user", "content": "What is the capital of Peru?"}, {"role": "assistant", "content": said}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"text": TEXTS[0]}))
    model, tokenizer = load(quantized, dtype="float32")
    prompt, reply = tokenizer.apply_chat_template(messages[:1]), tokenizer.encode(f"{said}[|endofturn|]")
    (row,) = evaluate(quantized, "demo", data=tmp_path / "chat.jsonl", replies_only=True).rows
    assert (row.documents, row.tokens) == (1, len(reply))
    rows = evaluate(quantized, "demo", data=tmp_path / "chat.jsonl").rows
    assert [row.kind for row in rows] == ["all", "chat", "text", "replies"], "a row of their own, beside the whole"
    assert rows[3] == dataclasses.replace(row, kind="replies") and rows[1].tokens == len(prompt + reply) - 1
    logs = log_probabilities(model(mx.array([prompt + reply]))[0])[len(prompt) - 1 :]
    nll = -sum(log[token] for log, token in zip(logs, reply, strict=False))
    assert row.perplexity == pytest.approx(math.exp(nll / len(reply)), rel=1e-3)
    parts = evaluate(quantized, "demo", data=tmp_path / "chat.jsonl", replies_only=True, max_tokens=4)
    assert len(reply) - 3 <= parts.rows[0].tokens < len(reply) and parts.data == "chat.jsonl, replies only"
    with pytest.raises(ValueError, match=r"no conversation of .*texts.jsonl has two tokens"):
        evaluate(quantized, "demo", data=texts, replies_only=True)


def test_a_reference_answers_held_out_prompts_itself(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = {"messages": [{"role": "user", "content": "What is the capital of Peru?"}]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt))
    monkeypatch.setattr(evaluating, "HELD_OUT_PROMPTS", tmp_path / "prompts.jsonl")
    found = evaluate(quantized, "demo", data="own-chats")
    tokenizer = load("demo")[1]
    said = len(tokenizer.encode("The capital of Peru is Lima.[|endofturn|]"))
    assert [(row.kind, row.documents) for row in found.rows] == [("all", 1), ("replies", 1)]
    assert found.rows[1].tokens == said and found.data == "chats of the reference"
    assert found.rows[0].tokens == said + len(tokenizer.apply_chat_template(prompt["messages"])) - 1


def log_probabilities(logits: mx.array) -> list[list[float]]:
    found = []
    for row in logits.tolist():  # type: ignore[union-attr]
        top = max(row)
        total = top + math.log(math.fsum(math.exp(value - top) for value in row))
        found.append([value - total for value in row])
    return found


def test_kl_is_measured_from_the_reference() -> None:
    """KL(reference ‖ candidate), which is not symmetric."""
    p, q = mx.array([[0.9, 0.1]]), mx.array([[0.5, 0.5]])
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert divergence(mx.log(q), mx.log(p)).item() == pytest.approx(expected, rel=1e-5)
    assert divergence(mx.log(p), mx.log(q)).item() != pytest.approx(expected, rel=0.1)
    assert divergence(mx.log(q) + 7, mx.log(p) - 3).item() == pytest.approx(expected, rel=1e-4), (
        "a shift of the logits changes nothing"
    )


@pytest.mark.heavy
def test_more_bits_lose_less(tmp_path: Path, texts: Path, quantized: Path) -> None:
    convert("demo", tmp_path / "8bit", q_bits=8, search=False)
    four, eight = (evaluate(folder, "demo", data=texts).rows[0].mean_kl for folder in (quantized, tmp_path / "8bit"))
    assert 0 < eight < four / 10


def test_memory_does_not_grow_with_layers(tmp_path: Path, texts: Path) -> None:
    script = "print(*(evaluate(folder, folder, data=sys.argv[1]).peak_bytes for folder in sys.argv[2:]))"
    command = [sys.executable, "-c", f"import sys; from exaone4_mlx import evaluate; {script}", str(texts)]
    command += [str(random_checkpoint(tmp_path / str(layers), layers)) for layers in (2, 8)]
    peaks = [int(peak) for peak in subprocess.check_output(command, text=True).split()]  # other tests free arrays here
    assert peaks[1] < 1.1 * peaks[0]


def test_bfloat16_has_a_noise_floor(texts: Path) -> None:
    found = evaluate("demo", "demo", data=texts, dtype="bfloat16")
    assert 0 < found.rows[0].mean_kl < 0.01
    assert found.dtype == "bfloat16"


def test_models_and_texts_that_cannot_be_compared_are_refused(
    tmp_path: Path, texts: Path, hf_folder: Path, quantized: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(quantized, "nowhere", data=texts)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent.txt"):
        evaluate(quantized, "demo", data=tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="max_tokens must be a whole number of at least 2, not 1"):
        evaluate(quantized, "demo", data=texts, max_tokens=1)
    (tmp_path / "short.txt").write_text("1")
    with pytest.raises(ValueError, match=r"no text of .*short.txt has two tokens"):
        evaluate(quantized, "demo", data=tmp_path / "short.txt")
    tokenizer = json.loads((hf_folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]
    (hf_folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for data in (texts, "own-chats"):
        with pytest.raises(ValueError, match="have different tokenizers"):
            evaluate(quantized, hf_folder, data=data)


def test_texts_longer_than_the_context_are_refused(
    texts: Path, hf_folder: Path, edit_json: Callable[..., None], quantized: Path
) -> None:
    edit_json(hf_folder / "config.json", max_position_embeddings=8)
    with pytest.raises(ValueError, match="longer than the context of 8; lower max_tokens"):
        evaluate(quantized, hf_folder, data=texts)
    assert evaluate(quantized, hf_folder, data=texts, max_tokens=8).rows[0].tokens > 3 * 7, "all windows count"


def test_every_token_of_a_long_text_counts(tmp_path: Path, quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A window is read without the ones before. The windows of one text are one text for the interval."""
    _, tokenizer = load("demo")
    (tmp_path / "long.txt").write_text(" ".join(TEXTS))
    ids = tokenizer.encode(" ".join(TEXTS))
    command = ["evaluate", "--model", str(quantized), "--reference", "demo", "--data", str(tmp_path / "long.txt")]
    assert main([*command, "--max-tokens", "10", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert (row["documents"], row["tokens"]) == (1, len(ids) - math.ceil(len(ids) / 10))
    assert row["perplexity_ratio_low"] is None
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("  –")


def test_another_vocabulary_is_refused(tmp_path: Path, texts: Path, quantized: Path) -> None:
    larger = random_checkpoint(tmp_path / "larger", 1, vocabulary=4096)
    with pytest.raises(ValueError, match=r"has a vocabulary of 3072 tokens, .* one of 4096"):
        evaluate(quantized, larger, data=texts)


def test_the_command_prints_a_table_or_json(texts: Path, quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--model", str(quantized), "--reference", "demo", "--data", str(texts)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "mean KL" in out and "\nall " in out and "4.511 bits per weight" in out and "texts.jsonl" in out
    assert main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["rows"][0]["kind"] == "all" and values["bits_per_weight"] == pytest.approx(4.511, abs=0.001)


@pytest.mark.heavy
def test_the_loss_of_a_quantized_cache_is_that_of_whole_models(texts: Path) -> None:
    """The figures equal those of the whole model with such a cache. Fewer bits and more layers lose more."""
    found = {
        (bits, layers): evaluate("demo", "demo", data=texts, kv=KVQuantization(bits, bits, layers=layers))
        for bits, layers in ((8, "global"), (4, "global"), (4, "all"))
    }
    costs = [one.rows[0].mean_kl for one in found.values()]
    assert 0 < costs[0] < costs[1] < costs[2]
    assert found[4, "all"].kv == "cache: keys 4 bits, values 4 bits, groups of 64"
    model, tokenizer = load("demo", dtype="float32")
    kv = KVQuantization(4, 4, 64, "all")
    kl = []
    for line in texts.read_text().splitlines():
        ids = tokenizer.encode(json.loads(line)["text"])
        kl += divergence(model(mx.array([ids]), model.make_cache(kv))[0], model(mx.array([ids]))[0]).tolist()[:-1]
    assert costs[2] == pytest.approx(sum(kl) / len(kl), rel=0.05)


def test_a_conversion_writes_its_loss_into_card_and_report(tmp_path: Path, texts: Path) -> None:
    summary = convert("demo", tmp_path / "out", evaluate=True, evaluation_data=texts, search=False)
    assert summary.evaluation is not None and summary.errors is not None
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["evaluation"]["rows"][0]["mean_kl"] == summary.evaluation.rows[0].mean_kl
    errors = {tensor["name"]: tensor.get("relative_error") for tensor in report["conversion"]["tensors"]}
    assert 0.05 < errors["model.layers.0.mlp.up_proj.weight"] < 0.15
    assert errors["model.norm.weight"] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{summary.evaluation.rows[0].mean_kl:.4f}"[:6] in card
    assert "errors.svg" in card and (tmp_path / "out" / "errors.svg").read_text().startswith("<?xml")
