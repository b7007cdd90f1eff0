"""`fit` adds up what a model needs, and its command prints it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import TINY

from exaone4_mlx import Exaone4Config
from exaone4_mlx.cli.main import main
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.measure.fit import fit, memory_of_this_machine, more_metal_memory
from exaone4_mlx.measure.sizes import cache_bytes, draft_cache_bytes, prefill_bytes
from exaone4_mlx.model.kv import KVQuantization


def test_max_kv_size_is_the_context_of_the_model_by_default() -> None:
    estimate = fit("demo")
    assert (estimate.max_kv_size, estimate.largest_context) == (8192, 8192) and estimate.fits
    assert fit("demo", max_kv_size=8192) == estimate


def test_quantized_caches_and_a_draft_model_count() -> None:
    plain = fit("demo", max_kv_size=3000)
    config = Exaone4Config.from_pretrained("demo")
    kv = KVQuantization.coerce(8, config)
    estimate = fit("demo", max_kv_size=3000, kv=8)
    assert estimate.cache_bytes == sum(cache_bytes(config, 3000, 2, kv)) < plain.cache_bytes
    assert (
        estimate.prefill_bytes == prefill_bytes(config, 3000, kv=kv) and plain.draft_bytes == estimate.draft_bytes == 0
    )
    drafted = fit("demo", max_kv_size=3000, draft_model="demo")
    assert drafted.draft_bytes == plain.weights_bytes + draft_cache_bytes(config, 3000)
    assert drafted.total_bytes == plain.total_bytes + drafted.draft_bytes + drafted.prefill_bytes - plain.prefill_bytes
    assert fit("demo", memory=drafted.total_bytes / 1e9, draft_model="demo", metal=False).largest_context >= 3000
    assert fit("demo", memory=(drafted.total_bytes - 1) / 1e9, draft_model="demo", metal=False).largest_context < 3000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv": 3}, "kv must be 8, 4 or a KVQuantization, not 3"),
        ({"kv": KVQuantization(8, group_size=48)}, "kv_group_size must be 32 or 64"),
    ],
)
def test_invalid_cache_quantization_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit("demo", **options)


def test_a_mac_with_enough_memory_can_raise_its_limit(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(8_000, 16_000)
    assert list(more_metal_memory(9_000_000_000)) == []
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    command = "sudo sysctl iogpu.wired_limit_mb=8704 raises the memory limit of models"
    assert list(more_metal_memory(9_000_000_000)) == [command]
    assert list(more_metal_memory(15_000_000_000)) == [], "the system needs some"


def test_weights_beyond_the_physical_memory_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever limit was asked about: a larger one can be set, but not beyond what there is."""
    estimate = fit("demo", memory=1e-9, metal=False)
    assert not estimate.fits
    estimate.check_weights()
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 11_000}.__getitem__)
    with pytest.raises(MemoryError, match=r"the weights have 11 MB, and this machine has 11 MB of memory"):
        estimate.check_weights()


def test_total_is_weights_caches_and_prefill() -> None:
    estimate, config = fit("demo", max_kv_size=3000), Exaone4Config.from_pretrained("demo")
    parts = (
        estimate.weights_bytes,
        estimate.global_cache_bytes,
        estimate.local_window_bytes,
        estimate.local_reserve_bytes,
    )
    assert min(parts) > 0 and estimate.prefill_bytes == prefill_bytes(config, 3000) > 0
    assert estimate.total_bytes == sum(parts) + estimate.prefill_bytes
    assert estimate.total_bytes == estimate.weights_bytes + sum(cache_bytes(config, 3000)) + prefill_bytes(config, 3000)


def test_it_fits_to_the_last_byte_and_not_beyond() -> None:
    needed = fit("demo", max_kv_size=3000).total_bytes
    assert fit("demo", max_kv_size=3000, memory=needed / 1e9, metal=False).fits
    assert not fit("demo", max_kv_size=3000, memory=(needed - 1) / 1e9, metal=False).fits


@pytest.mark.parametrize("context", [2, 256, 257, 2048, 3000, 8191])
def test_the_largest_context_fits_and_one_token_more_does_not(context: int) -> None:
    memory = fit("demo", max_kv_size=context).total_bytes / 1e9
    largest = fit("demo", memory=memory, metal=False).largest_context
    assert largest >= context and fit("demo", max_kv_size=largest, memory=memory, metal=False).fits
    assert largest == 8192 or not fit("demo", max_kv_size=largest + 1, memory=memory, metal=False).fits


def test_no_context_fits_where_the_weights_do_not() -> None:
    estimate = fit("demo", memory=0.001, metal=False)
    assert (estimate.largest_context, estimate.fits, estimate.memory_bytes) == (0, False, 1_000_000)


def test_memory_is_what_metal_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 21_474_836_480})
    assert memory_of_this_machine() == fit("demo").memory_bytes == 21_474_836_480


def test_memory_is_the_physical_one_without_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert memory_of_this_machine() == fit("demo").memory_bytes == 4_096_000


# --- what is refused ----------------------------------------------------------


@pytest.mark.parametrize("context", [8193, 1, 0, -1, 2.5, True, "8192"])
def test_max_kv_size_is_a_number_of_tokens_of_the_context(context: Any) -> None:
    with pytest.raises(
        ValueError, match=f"max_kv_size must be a number of tokens from 2 to the model's 8192, not {context!r}"
    ):
        fit("demo", max_kv_size=context)


@pytest.mark.parametrize("memory", [0, -1, math.nan, math.inf, True, "16 GB"])
def test_memory_is_a_positive_number_of_gigabytes(memory: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a positive number of gigabytes, not "):
        fit("demo", memory=memory, metal=False)
    with pytest.raises(ValueError, match="memory must be in gigabytes"):
        fit("demo", memory=16_000_000_000, metal=False)


def test_missing_files_raise_as_in_load(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        fit(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it is not a model folder"):
        fit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors; pytorch_model.bin is a PyTorch file"):
        fit(tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"lacks model-00001-of-00002\.safetensors"):
        fit(tmp_path)


def test_other_checkpoints_raise(hf_folder: Path, edit_json: Callable[..., None]) -> None:
    edit_json(hf_folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "bits": 4})
    with pytest.raises(ValueError, match="of method 'bitsandbytes' is not supported"):
        fit(hf_folder)
    edit_json(hf_folder / "config.json", model_type="llama")
    with pytest.raises(ValueError, match="not an EXAONE 4 model: model_type is 'llama'"):
        fit(hf_folder)


def test_damaged_weights_raise(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        fit(hf_folder)


def test_a_revision_is_for_hub_ids() -> None:
    with pytest.raises(ValueError, match="the demo model has no revisions"):
        fit("demo", revision="main")
    with pytest.raises(ValueError, match=r"revision 'main' is for hub ids; .*config\.json is a local file"):
        fit(DEMO_FOLDER / "config.json", revision="main")


def test_a_quantized_model_keeps_its_bits(quantized_demo: Path) -> None:
    with pytest.raises(ValueError, match="is quantized already; leave q_bits out"):
        fit(quantized_demo, q_bits=8)
    with pytest.raises(ValueError, match="affine quantization has 2, 3, 4, 5, 6 or 8 bits, not 7"):
        fit("nowhere", q_bits=7)
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, float32, not 'int8'"):
        fit("nowhere", dtype="int8")


def test_a_config_without_the_size_of_weights_raises(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ValueError, match=r"config\.json alone does not tell how large 'awq' weights are"):
        fit(tmp_path)


# --- the command --------------------------------------------------------------


def test_the_table_has_a_column_for_each_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gigabytes = fit("demo", max_kv_size=100, q_bits=8).total_bytes / 1e9
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert main(["fit", "--model", "demo", "--memory", str(gigabytes), "--max-kv-size", "100"]) == 0
    out = capsys.readouterr().out
    rows = {line[:26].strip(): line[26:].split("  ") for line in out.splitlines()}
    cells = {name: [cell.strip() for cell in row if cell.strip()] for name, row in rows.items()}
    assert cells["100 tokens"] == ["16 bits", "8 bits", "4 bits"]
    assert cells[f"fits into {gigabytes * 1e3:.0f} MB"] == ["no", "yes", "yes"]
    assert cells["largest context that fits"][0] == "none"
    names = "weights", "global cache", "local windows", "rewind reserve and slack", "prefill transient", "total"
    assert set(names) <= set(cells) and all(len(cells[name]) == 3 for name in names)


def test_a_quantized_model_has_one_column(quantized_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model", str(quantized_demo)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("  ")[-1].strip() == "as stored"


def test_the_table_counts_quantized_caches_and_a_draft_model(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, draft = (str(shared / "configs" / f"EXAONE-4.0-{size}.config.json") for size in ("32B", "1.2B"))

    def table(*flags: str) -> str:
        assert main(["fit", "--model", file, "--metal", "--memory", "64", "--q-bits", "4", *flags]) == 0
        return capsys.readouterr().out

    plain = table()
    assert "--kv-bits 8 saves 3.89 GB." in plain and "draft" not in plain
    estimate = table("--kv-bits-keys", "8", "--kv-bits-values", "4", "--draft-model", draft)
    assert "Keys in 8 bits and values in 4 bits, in groups of 64, in the caches of global layers." in estimate
    rows = {line[:26].strip(): line[26:].strip() for line in estimate.splitlines()}
    assert rows["global cache"] == "3.49 GB" and rows["local windows"] == "805 MB"
    assert rows["draft model, its caches"] == f"{(2_558_782_976 + 4671 * 30 * 2048) / 1e9:.2f} GB", (
        "a window and its slack"
    )
    with pytest.raises(ValueError, match=r"the draft model demo has a vocabulary of 3072 tokens, and .* one of 102400"):
        fit(file, draft_model="demo")
    assert "Keys and values are in 8 bits" in table("--kv-bits", "8")
    assert main(["fit", "--model", "demo", "--kv-bits", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["global_cache_bytes"] == fit("demo", kv=4).global_cache_bytes


def test_metal_counts_as_on_a_mac_on_any_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where attention is not fused, the table says that there it is."""
    Exaone4Config(num_hidden_layers=2, head_dim=128, max_position_embeddings=8192).save_pretrained(tmp_path)
    here, there = fit(tmp_path, metal=False), fit(tmp_path, metal=True)
    assert here.prefill_bytes > 2 * there.prefill_bytes > 0
    assert here.total_bytes - here.prefill_bytes == there.total_bytes - there.prefill_bytes
    if not mx.metal.is_available():
        assert fit(tmp_path) == here
        assert main(["fit", "--model", str(tmp_path)]) == 0
        assert "On a Mac it is fused: --metal counts it so." in capsys.readouterr().out
    assert main(["fit", "--model", str(tmp_path), "--metal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prefill_bytes"] == there.prefill_bytes


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model", "demo", "--max-kv-size", "3000", "--q-bits", "4", "--memory", "1", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    expected = fit("demo", max_kv_size=3000, q_bits=4, memory=1)
    assert estimate == {name: getattr(expected, name) for name in FIELDS} and estimate["fits"]


FIELDS = {
    "weights_bytes", "global_cache_bytes", "local_window_bytes", "local_reserve_bytes", "prefill_bytes", "total_bytes",
    "batch_size", "draft_bytes", "fits", "largest_context", "max_kv_size", "memory_bytes", "prompt_cache_bytes", "adapter_bytes",
}  # fmt: skip


def test_the_limit_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def output(*flags: str) -> str:
        assert main(["fit", "--model", "demo", *flags]) == 0
        return capsys.readouterr().out

    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert "The memory is the physical memory of this machine." in output()
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 21_474_836_480})
    estimate = output()
    assert "fits into 21.47 GB" in estimate
    assert "Metal's recommended working set on this machine; sudo sysctl iogpu.wired_limit_mb=N" in estimate
    assert "fits into 6.00 GB" in output("--memory", "8")
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert "The memory is" not in output("--memory", "8")


def test_memory_with_metal_is_that_of_the_machine(
    shared: Path, machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 48 GB, Metal gives a model about 36 GB: too little for the 32B in 8 bits, and its caches."""
    file = str(shared / "configs" / "EXAONE-4.0-32B.config.json")
    assert main(["fit", "--model", file, "--memory", "48", "--metal"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^fits into 36.00 GB +no +no +yes$", out, re.M)
    assert "about three quarters of 48.00 GB; sudo sysctl iogpu.wired_limit_mb=N raises it" in out
    assert fit(file, memory=48, metal=True).memory_bytes == 36e9
    assert fit(file, memory=48, metal=False).memory_bytes == 48e9
    if not mx.metal.is_available():
        machine(100_000, 100_000)
        assert fit(file, metal=True).memory_bytes == 75e9


def test_the_exit_code_is_1_if_nothing_fits(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["fit", "--model", str(shared / "configs" / "EXAONE-4.0-32B.config.json"), "--metal", "--memory"]
    for memory, flags, code in (
        ("8", [], 1),
        ("48", ["--q-bits", "8"], 1),
        ("48", ["--json"], 1),
        ("48", ["--json", "--q-bits", "4"], 0),
    ):
        assert main([*ask, memory, *flags]) == code, (memory, flags)
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model", "demo", "--max-kv-size", "8193"],
            "--max-kv-size must be a number of tokens from 2 to the model's 8192, not 8193",
        ),
        (["--model", "nowhere", "--memory", "-1"], "memory must be a positive number of gigabytes, not -1.0"),
        (["--model", "nowhere", "--memory", "nan"], "memory must be a positive number of gigabytes, not nan"),
        (["--model", "nowhere", "--memory", "inf"], "memory must be a positive number of gigabytes, not inf"),
        (["--model", "nowhere"], "there is no folder nowhere"),
        (["--model", "README.md"], "is not JSON"),
    ],
)
def test_errors_are_one_line_and_exit_1(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *flags]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("size", ["1.2B", "32B"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_divide_layers_and_caches(shared: Path, size: str, ranks: int) -> None:
    """Embedding, head and norms are in each rank."""
    config = shared / "configs" / f"EXAONE-4.0-{size}.config.json"
    whole, part = (fit(config, max_kv_size=4096, metal=True, ranks=count) for count in (1, ranks))
    assert part.cache_bytes * ranks == whole.cache_bytes
    read = Exaone4Config.from_file(config)
    heads = 1 if read.tie_word_embeddings else 2
    both = heads * read.vocab_size * read.hidden_size * 2
    norms = (2 * read.num_hidden_layers + 1) * read.hidden_size * 2 + 2 * read.num_hidden_layers * read.head_dim * 2
    assert part.weights_bytes == both + norms + (whole.weights_bytes - both - norms) // ranks


def test_ranks_that_do_not_divide_are_refused(shared: Path) -> None:
    config = shared / "configs" / "EXAONE-4.0-32B.config.json"
    with pytest.raises(ValueError, match="num_attention_heads 40 is not a multiple of 3 ranks"):
        fit(config, ranks=3)
    with pytest.raises(ValueError, match=r"each of 8 ranks would have 3424, which are 53.5 groups of 64"):
        fit(config, ranks=8, q_bits=4)
    assert fit(config, ranks=8).weights_bytes
    with pytest.raises(ValueError, match="ranks must be a positive whole number, not 0"):
        fit(config, ranks=0)


def test_a_prefix_store_counts() -> None:
    plain, counted = fit("demo", memory=1), fit("demo", memory=1, prompt_cache_bytes=10**8)
    assert counted.total_bytes == plain.total_bytes + 10**8
    assert "100 MB of earlier prompts" in counted.arithmetic and "earlier" not in plain.arithmetic
    assert fit("demo", memory=0.1, metal=False).largest_context > 0
    assert fit("demo", memory=0.1, metal=False, prompt_cache_bytes=10**8).largest_context == 0
    with pytest.raises(ValueError, match="prompt_cache_bytes must be a number of bytes"):
        fit("demo", prompt_cache_bytes=-1)


def test_a_batch_has_caches_for_each_conversation() -> None:
    one, four = (fit("demo", max_kv_size=2000, memory=1, batch_size=size) for size in (1, 4))
    assert four.cache_bytes == 4 * one.cache_bytes
    assert four.total_bytes - one.total_bytes == 3 * one.cache_bytes, "weights and the reading of a prompt count once"
    assert "4 × 2,000 tokens" in four.arithmetic
    with pytest.raises(ValueError, match="batch_size must be a positive"):
        fit("demo", batch_size=0)
