"""Folders are shared with mlx-lm: it reads what we write, we read what it writes, and both say the same."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, greedy_tokens, in_chunks, random_ids, small_caches, tiny_model
from documented import rope_config
from mlx.utils import tree_flatten, tree_unflatten

from exaone4_mlx import KVQuantization, Sampling, Tokenizer, convert, generate, load
from exaone4_mlx.files.folders import DEMO_FOLDER

PROMPT = "Which one is bigger, 3.12 vs 3.9? What is the capital of France? " * 4  # several windows long

#: On Python 3.10 mlx-lm is 0.31, which asks caches and tokenizers for other attributes.
NEEDS_0_32 = pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("mlx-lm").split(".")[:2])) < (0, 32), reason="mlx-lm before 0.32"
)


@pytest.fixture(scope="module")
def mlx_lm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers tells that there is no torch
        return pytest.importorskip("mlx_lm")


def their_load(mlx_lm: Any, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = mlx_lm.load(str(folder))
    model.set_dtype(mx.float32)
    return model


def ids() -> list[int]:
    return Tokenizer.from_pretrained("demo").encode(PROMPT)


def their_greedy_tokens(model: Any, prompt: list[int], count: int = 24) -> list[int]:
    from mlx_lm.generate import generate_step

    return [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


def assert_same(ours: Any, theirs: Any, limit: float = 1e-3) -> None:
    prompt = ids()
    ours.set_dtype(mx.float32)
    assert distance(ours(mx.array([prompt])), theirs(mx.array([prompt]))) < limit
    assert greedy_tokens(ours, prompt, 24) == their_greedy_tokens(theirs, prompt)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"q_bits": 8, "q_group_size": 32}, marks=pytest.mark.heavy),
        pytest.param({"q_mode": "mxfp4", "q_group_size": 32}, marks=pytest.mark.heavy),
        pytest.param({"quantize": False}, marks=pytest.mark.heavy),
    ],
    ids=["4 bit", "8 bit", "mxfp4", "unquantized"],
)
@pytest.mark.heavy
def test_mlx_lm_reads_what_we_convert(mlx_lm: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    convert("demo", tmp_path / "ours", search=False, **options)
    # An mxfp4 embedding is bfloat16, and there queries and keys are rounded between norm and weight, as in transformers.
    limit = 0.05 if options.get("q_mode") == "mxfp4" else 1e-3
    assert_same(load(tmp_path / "ours")[0], their_load(mlx_lm, tmp_path / "ours"), limit)


@pytest.mark.parametrize(
    "options", [{"q_bits": 4, "q_group_size": 64}, {"quant_predicate": "mixed_4_6"}], ids=["4 bit", "mixed"]
)
@pytest.mark.heavy
def test_we_read_what_mlx_lm_converts(mlx_lm: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlx_lm.convert(str(DEMO_FOLDER), str(tmp_path / "theirs"), quantize=True, **options)
    assert_same(load(tmp_path / "theirs")[0], their_load(mlx_lm, tmp_path / "theirs"))


@pytest.mark.heavy
def test_adapters_of_four_bits_are_fused_saved_and_read_by_both(mlx_lm: Any, tmp_path: Path) -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, tokenizer = load("demo", q_bits=4, q_group_size=32)
    linear_to_lora_layers(model, 2, {"rank": 2, "scale": 4.0, "dropout": 0.0})
    with pytest.raises(ValueError, match=r"is a LoRALinear, not a layer of Exaone4ForCausalLM: fuse it first"):
        model.save_pretrained(tmp_path / "out")
    adapters = [(name, module) for name, module in model.named_modules() if hasattr(module, "fuse")]
    for _, module in adapters:
        module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(1)) / 100
    model.update_modules(tree_unflatten([(name, module.fuse()) for name, module in adapters]))
    model.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    saved = load(tmp_path / "out")[0]
    assert saved.layers[-1].mlp.up_proj.bits == 4
    assert distance(saved(mx.array([ids()])), model(mx.array([ids()]))) == 0
    assert_same(saved, their_load(mlx_lm, tmp_path / "out"))


@pytest.mark.parametrize("window", [7, None], ids=["hybrid", "all global"])
def test_untied_models_are_shared_too(mlx_lm: Any, tmp_path: Path, window: int | None) -> None:
    """The 32B has a head of its own, and 1.2B's layers all see everything."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "vocab_size": 3072}
    model = tiny_model(**sizes, sliding_window=window, sliding_window_pattern="LLLG" if window else None)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(model.config.to_dict()))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_FOLDER / name, tmp_path / "hf")
    mx.save_safetensors(str(tmp_path / "hf" / "model.safetensors"), dict(tree_flatten(model.parameters())))
    convert(tmp_path / "hf", tmp_path / "ours", search=False)
    assert_same(load(tmp_path / "ours")[0], their_load(mlx_lm, tmp_path / "ours"))


@pytest.mark.heavy
def test_old_mlx_community_config_is_read(mlx_lm: Any, tmp_path: Path, edit_json: Callable[..., None]) -> None:
    """Folders of the model's release days have neither layer_types nor rope_parameters."""
    convert("demo", tmp_path / "old", search=False)
    theirs = their_load(mlx_lm, tmp_path / "old")
    edit_json(tmp_path / "old" / "config.json", layer_types=None, rope_parameters=None)
    assert_same(load(tmp_path / "old")[0], theirs)


@pytest.mark.parametrize("rope", ["default", "linear", "yarn", "llama3"])
def test_mlx_lm_computes_the_same_from_the_config_that_we_write(mlx_lm: Any, rope: str) -> None:
    """For the RoPE types that it knows. What it drops of yarn's keys, attention_factor, is the default here."""
    from mlx_lm.models import exaone4

    ours = tiny_model(**rope_config(rope, sliding_window_pattern="LLLG"))
    theirs = exaone4.Model(exaone4.ModelArgs.from_dict(json.loads(json.dumps(ours.config.to_dict()))))
    theirs.update(ours.parameters())
    assert distance(ours(random_ids(50)), theirs(random_ids(50))) < 1e-4


def test_our_model_runs_under_their_generator(mlx_lm: Any) -> None:
    model, _ = load("demo", dtype="float32")
    assert their_greedy_tokens(model, ids()) == greedy_tokens(model, ids(), 24)


def test_quantized_folder_generates(tmp_path: Path) -> None:
    convert("demo", tmp_path / "out", search=False)
    model, tokenizer = load(tmp_path / "out", dtype="float32")
    assert generate(model, tokenizer, "Hello", sampling=Sampling(temperature=0.0), max_tokens=30).text


@pytest.mark.heavy
def test_the_server_of_mlx_lm_finds_calls_of_a_converted_model(tmp_path: Path) -> None:
    """Without `tool_parser_type` it says that the model does not support tools, and a call is the answer's text."""
    pytest.importorskip("mlx_lm")
    convert("demo", tmp_path / "out", quantize=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--model", str(tmp_path / "out"), "--port", port]
    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
    question = {
        "messages": [{"role": "user", "content": "What is 1234 * 56?"}],
        "tools": [{"type": "function", "function": {"name": "calculator", "parameters": parameters}}],
        "temperature": 0,
        "max_tokens": 60,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "mlx_lm", "server", *options], **silent) as server:
        try:
            answer = json.loads(wait_for(lambda: urllib.request.urlopen(request, timeout=60).read(), server))
        finally:
            server.terminate()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("calculator", {"expression": "1234 * 56"})


def wait_for(ask: Callable[[], bytes], server: subprocess.Popen[bytes]) -> bytes:
    """The result of `ask` as soon as the server listens."""
    for _ in range(600):
        try:
            return ask()
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
    raise TimeoutError


# --- mlx-lm's tools on our model object -----------------------------------------------------------------------------


def their_caches(mlx_lm: Any, model: Any) -> list[Any]:
    from mlx_lm.models.cache import KVCache, RotatingKVCache

    return [KVCache() if layer.window is None else RotatingKVCache(layer.window) for layer in model.config.layers]


def test_their_caches_give_our_logits(mlx_lm: Any) -> None:
    """In prompts of several windows, in chunks and token by token; also in a mix of both kinds."""
    for rope, cuts in (
        ("default", [24]),
        ("llama3", [9, 1, 1, 6, 1, 1, 5]),
        ("dynamic", [9, 1, 14]),
        ("yarn", [1] * 24),
    ):
        model = tiny_model(**rope_config(rope))
        ids = random_ids(24)
        expected = in_chunks(model, ids, cuts, model.make_cache())
        mixed = [*their_caches(mlx_lm, model)[:2], *model.make_cache()[2:]]
        for caches in (their_caches(mlx_lm, model), mixed):
            assert distance(in_chunks(model, ids, cuts, caches), expected) < 1e-4, (rope, cuts)


@NEEDS_0_32
def test_a_prompt_cache_goes_through_their_file(mlx_lm: Any, tmp_path: Path) -> None:
    """The file holds the rows of the text only: before, at, and beyond the window of 7, and rewound."""
    from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache, trim_prompt_cache

    model = small_caches(tiny_model(**rope_config("default")), reserve=2, slack=3)
    ids, file = random_ids(40), str(tmp_path / "cache.safetensors")
    for length, trimmed in ((1, 0), (6, 0), (7, 0), (8, 2), (20, 2), (25, 2), (33, 1)):
        cache = model.make_cache()
        in_chunks(model, ids[:, :length], [1] * length, cache)
        assert trim_prompt_cache(cache, trimmed) == trimmed
        save_prompt_cache(file, cache, {"model": "tiny"})
        loaded, metadata = load_prompt_cache(file, return_metadata=True)
        assert metadata == {"model": "tiny"} and loaded[0].offset == length - trimmed
        rest = ids[:, length - trimmed :]
        assert distance(model(rest, loaded), model(rest, cache)) < 1e-4, (length, trimmed)
    cache = tiny_model(head_dim=32).make_cache(8)
    with pytest.raises(ValueError, match=r"not serializable: quantized caches of exaone4_mlx \(PromptCache.save saves"):
        save_prompt_cache(file, cache)


def test_kv_bits_quantizes_our_caches(mlx_lm: Any) -> None:
    """The caches of local layers stay in full precision, as with kv=8."""
    from mlx_lm.generate import generate_step

    model = tiny_model(**rope_config("default", head_dim=32))
    prompt = random_ids(30)[0]
    for bits, start in ((8, 0), (4, 10)):
        cache = model.make_cache()
        options = {"kv_bits": bits, "kv_group_size": 32, "quantized_kv_start": start}
        tokens = [token for token, _ in generate_step(prompt, model, max_tokens=6, prompt_cache=cache, **options)]
        assert [type(layer).__name__ for layer in cache] == ["RotatingKVCache"] * 3 + ["QuantizedKVCache"]
        assert cache[3].bits == bits and cache[3].offset >= 30
        ours = model.make_cache(KVQuantization(bits, bits, 32, "global"))
        assert [int(token) for token in tokens] == greedy_tokens_in(model, prompt.tolist(), ours, 6), bits
    with pytest.raises(ValueError, match="mlx-lm's tools take caches in full precision"):
        list(
            generate_step(
                prompt, model, max_tokens=2, prompt_cache=model.make_cache(KVQuantization(8, 8, 32)), **options
            )
        )


def greedy_tokens_in(model: Any, prompt: list[int], cache: Any, count: int) -> list[int]:
    """As mlx-lm does it: all but the last token of the prompt first."""
    model(mx.array([prompt[:-1]]), cache)
    tokens = [prompt[-1]]
    for _ in range(count):
        tokens.append(int(mx.argmax(model(mx.array([tokens[-1:]]), cache)[0, -1]).item()))
    return tokens[1:]


def test_their_batches_say_what_one_prompt_says(mlx_lm: Any) -> None:
    """With our model and our tokenizer; the prompts are shorter and longer than a window."""
    from mlx_lm.generate import BatchGenerator

    model = tiny_model(**rope_config("default", eos_token_id=None))
    prompts = [random_ids(length, seed=length)[0].tolist() for length in (3, 12, 30)]
    batch = BatchGenerator(model, max_tokens=6)
    order, found = batch.insert(prompts, [6] * 3), dict[int, list[int]]()
    while responses := batch.next_generated():
        for one in responses:
            found.setdefault(one.uid, []).append(int(one.token))
    assert [found[uid] for uid in order] == [greedy_tokens(model, prompt, 6) for prompt in prompts]
    changing = tiny_model(**rope_config("dynamic"))
    mixed = BatchGenerator(changing, max_tokens=6)
    mixed.insert(prompts, [6] * 3)
    with pytest.raises(ValueError, match="RoPE of type 'dynamic' depends on the length of a text, so mlx-lm cannot"):
        mixed.next_generated()


@NEEDS_0_32
def test_their_generators_take_our_tokenizer(mlx_lm: Any, demo: Any) -> None:
    model, tokenizer = demo
    asked = [[{"role": "user", "content": text}] for text in ("Hello", "너가 얼마나 대단한지 설명해 봐")]
    prompts = [tokenizer.apply_chat_template(one) for one in asked]
    expected = [generate(model, tokenizer, one, temperature=0, max_tokens=6).text for one in asked]
    assert mlx_lm.generate(model, tokenizer, prompts[1], max_tokens=6) == expected[1]
    assert mlx_lm.batch_generate(model, tokenizer, prompts, max_tokens=6).texts == expected


def test_other_caches_are_refused_by_name(mlx_lm: Any, unread: Any) -> None:
    from mlx_lm.models.cache import ArraysCache

    model = tiny_model()
    with pytest.raises(ValueError, match=r"cache\[0\] is a ArraysCache, which a layer of attention cannot use"):
        model(random_ids(3), [ArraysCache(2)] * 4)
    with pytest.raises(ValueError, match="prompt_cache must be a PromptCache, not a list of caches"):
        generate(*unread, [5, 6], prompt_cache=their_caches(mlx_lm, unread[0]))
    with pytest.raises(ValueError, match=r"past_key_values\[0\] is not a cache for layer 0 of this model"):
        model.forward(random_ids(3), past_key_values=their_caches(mlx_lm, model))
    with pytest.raises(TypeError, match="there is no option 'kv_bits'; did you mean kv=8"):
        generate(*unread, [5, 6], kv_bits=8)
