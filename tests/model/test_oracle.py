"""Live comparison with transformers on random tiny checkpoints that it saved itself. Needs torch; run in CI."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import LLAMA3, distance, greedy_tokens

from exaone4_mlx import Exaone4Config, convert
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.network import Exaone4ForCausalLM
from exaone4_mlx.model.pretrained import load_network

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

SHAPES: dict[str, dict[str, Any]] = {
    "hybrid": {"sliding_window_pattern": 4, "tie_word_embeddings": False},
    "hybrid, tied": {"sliding_window_pattern": 2, "tie_word_embeddings": True},
    "hybrid, wide heads": {"sliding_window_pattern": 4, "head_dim": 24, "tie_word_embeddings": False},
    "all global": {"sliding_window": None, "layer_types": ["full_attention"] * 4, "tie_word_embeddings": False},
    "all global, tied": {"sliding_window": None, "layer_types": ["full_attention"] * 4, "tie_word_embeddings": True},
}


def saved(folder: Path, seed: int, window: int, **changes: Any) -> Any:
    """A random checkpoint written by transformers, and its model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = random.Random(seed)
    values: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": rng.choice([1, 2, 3, 6]),
        "head_dim": rng.choice([8, 16]),
        "max_position_embeddings": 256,
        "rope_parameters": LLAMA3,
        "sliding_window": window,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = transformers.Exaone4ForCausalLM(transformers.Exaone4Config(**(values | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.ndim == 1
            parameter.normal_(1.0 if flat else 0.0, 0.3 if flat else 3 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder, max_shard_size="20KB" if seed % 2 else "1GB")
    return model


def their_logits(model: Any, ids: list[list[int]]) -> mx.array:
    import torch

    with torch.no_grad():
        return mx.array(model(torch.tensor(ids)).logits.numpy())


@pytest.mark.parametrize("window", [5, 8, 11, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers_in_every_chunking(shape: str, window: int, tmp_path: Path) -> None:
    seed = list(SHAPES).index(shape) * 10 + window
    theirs = saved(tmp_path, seed, **({"window": window} | SHAPES[shape]))
    ours = load_network(Exaone4ForCausalLM, tmp_path)
    rng = random.Random(seed)
    length = 4 * window + rng.randrange(9)
    ids = [[rng.randrange(97) for _ in range(length)] for _ in range(2)]
    expected = their_logits(theirs, ids)
    assert mx.max(mx.abs(expected)).item() > 5
    assert distance(ours(mx.array(ids)), expected) < 1e-4, "whole"
    for longest in (1, 7, length):
        cache, start, logits = ours.make_cache(), 0, []
        while start < length:
            size = rng.randint(1, longest)
            logits.append(ours(mx.array(ids)[:, start : start + size], cache))
            start += size
        assert distance(mx.concatenate(logits, axis=1), expected) < 1e-4, f"chunks of up to {longest}"


def test_greedy_reply_equals_transformers(tmp_path: Path) -> None:
    import torch

    theirs = saved(tmp_path, 3, window=6, **SHAPES["hybrid"])
    ours = load_network(Exaone4ForCausalLM, tmp_path)
    prompt = [5, 9, 40, 60, 22, 80, 3]
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None)[0, 7:]
    assert greedy_tokens(ours, prompt, 40, step_size=4) == expected.tolist()


def test_transformers_reads_the_config_that_we_write(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = saved(tmp_path / "hf", 4, window=6, **SHAPES["hybrid"])
    shutil.copy(DEMO_FOLDER / "tokenizer.json", tmp_path / "hf")  # a folder without one is not converted
    convert(tmp_path / "hf", tmp_path / "mlx", quantize=False)
    read = transformers.AutoConfig.from_pretrained(tmp_path / "mlx")
    assert read.layer_types == theirs.config.layer_types
    assert dict(read.rope_parameters) == dict(theirs.config.rope_parameters)
    again = transformers.Exaone4ForCausalLM.from_pretrained(tmp_path / "mlx").eval()
    ids = [[5, 9, 40, 60, 22, 80, 3] * 4]
    assert distance(their_logits(again, ids), their_logits(theirs, ids)) < 1e-5


@pytest.mark.parametrize("size", ["1.2B", "32B"])
def test_published_configs_mean_the_same_to_transformers(size: str, shared: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    file = shared / "configs" / f"EXAONE-4.0-{size}.config.json"
    ours, theirs = Exaone4Config.from_file(file), transformers.Exaone4Config.from_pretrained(file)
    assert list(ours.layer_types) == theirs.layer_types
    rotary = transformers.models.exaone4.modeling_exaone4.Exaone4RotaryEmbedding(theirs)
    from exaone4_mlx.model.rope import inverse_frequencies

    expected = inverse_frequencies(ours.rope_parameters, ours.head_dim)
    assert rotary.inv_freq.tolist() == pytest.approx(expected, rel=1e-6)


def test_prompts_equal_transformers_rendering_of_the_same_template(shared: Path, tmp_path: Path) -> None:
    """Random conversations, through transformers' own template machinery and through ours."""
    transformers = pytest.importorskip("transformers")
    from exaone4_mlx import Tokenizer

    ours = Tokenizer.from_pretrained(DEMO_FOLDER)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(DEMO_FOLDER)
    rng = random.Random(0)
    texts = ["", "hi", "안녕하세요?", "a\n\n  b\t\tc", '{"x": "</b>"}', "<think>\nhm\n</think>\n\nso", "½ & <x>", "  "]
    for _ in range(300):
        messages: list[dict[str, Any]] = []
        for _ in range(rng.randint(1, 6)):
            role = rng.choice(["system", "user", "assistant", "tool"])
            text = rng.choice(texts[1:5] if role == "user" else texts)
            message: dict[str, Any] = {"role": role, "content": text}
            if role == "assistant" and rng.random() < 0.4:
                arguments = {"값": rng.choice([1, "두", [3], {"a": None}])}
                message["tool_calls"] = [{"function": {"name": "f", "arguments": arguments}}] * rng.randint(1, 2)
            if role == "tool" and rng.random() < 0.5:
                message["content"] = {"온도": 3.5, "ok": True}
            messages.append(message)
        options: dict[str, Any] = {"add_generation_prompt": rng.random() < 0.5, "enable_thinking": rng.random() < 0.5}
        if rng.random() < 0.4:
            options["tools"] = [
                {"type": "function", "function": {"name": "f", "description": "그래 <b>", "parameters": {}}}
            ]
        expected = theirs.apply_chat_template(messages, tokenize=False, **options)
        assert ours.apply_chat_template(messages, tokenize=False, **options) == expected
