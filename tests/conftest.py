"""Tiny random models, folders that hold them, the demo, and the data beside the project."""

from __future__ import annotations

import copy
import functools
import gc
import json
import math
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import tokenizers
from mlx.utils import tree_flatten, tree_unflatten

from exaone4_mlx import Exaone4Config, Exaone4ForCausalLM, Tokenizer, convert, load
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.generation.decode import TokenStream
from exaone4_mlx.generation.draft import DraftScheduler
from exaone4_mlx.generation.prefill import prefill
from exaone4_mlx.generation.worker import Worker
from exaone4_mlx.model.cache import KVCache, RotatingKVCache
from exaone4_mlx.model.kv import KVQuantization
from exaone4_mlx.text.template import ChatTemplate

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job: its children ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

#: A hybrid whose window is small enough for short prompts to cross it several times.
TINY: dict[str, Any] = {
    "model_type": "exaone4",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": LLAMA3,
    "sliding_window": 7,
    "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}


@functools.cache
def _normal(name: str, shape: tuple[int, ...], seed: int) -> mx.array:
    rng = random.Random(f"{seed} {name}")
    mean, deviation = (1.0, 0.3) if len(shape) == 1 else (0.0, 4.0 * shape[-1] ** -0.5)
    size = math.prod(shape)
    numbers = [rng.gauss(mean, deviation) for _ in range(min(size, 16_381))]  # a prime number: no two rows are equal
    array = mx.array((numbers * (size // len(numbers) + 1))[:size]).reshape(shape)
    mx.eval(array)
    return array


def weights_of(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, mx.array]:
    """Weights that are the same on every machine and in every version: from Python's generator, by name.

    Projections keep the scale of their inputs, norms are around one, and logits come out around ten.
    """
    return {name: mx.array(_normal(name, shapes[name], seed)) for name in sorted(shapes)}


def tiny_model(seed: int = 0, dtype: mx.Dtype = mx.float32, kind: type = Exaone4ForCausalLM, **changes: Any) -> Any:
    """A random tiny model; `changes` go into its config.json."""
    model = kind(Exaone4Config.from_dict(TINY | changes))
    shapes = {name: array.shape for name, array in tree_flatten(model.parameters())}
    model.update(tree_unflatten(list(weights_of(shapes, seed).items())))
    model.set_dtype(dtype)
    model.eval()
    return model


def mostly_heavy(values: Iterable[Any], kept: int) -> list[Any]:
    """Parameters of a test: `kept` of them, evenly spaced, are in the default run, and the others are heavy."""
    values = list(values)
    chosen = {place * len(values) // kept for place in range(kept)}
    return [v if i in chosen else pytest.param(v, marks=pytest.mark.heavy) for i, v in enumerate(values)]


def random_ids(length: int, seed: int = 0, vocab_size: int = TINY["vocab_size"], batch: int = 1) -> mx.array:
    rng = random.Random(seed)
    return mx.array([[rng.randrange(3, vocab_size) for _ in range(length)] for _ in range(batch)])


class Greedy:
    """Samples the most probable token, and records the calls of `replace_last`."""

    state: Any = None

    def __init__(self) -> None:
        self.replaced: list[tuple[int, ...]] = []

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        return mx.argmax(logits if allowed is None else mx.where(allowed, logits, -1e9), axis=-1)

    def replace_last(self, forced: Sequence[int] = ()) -> None:
        self.replaced.append(tuple(forced))


def small_caches(model: Exaone4ForCausalLM, reserve: int = 8, slack: int = 5) -> Exaone4ForCausalLM:
    """The model, its caches so small that they compact all the time and go back hardly at all by themselves."""
    layers = model.config.layers
    object.__setattr__(
        model,
        "make_cache",
        lambda kv=None: [
            RotatingKVCache(layer.window, reserve, slack, kv) if layer.window else KVCache(kv=kv) for layer in layers
        ],
    )
    return model


def random_caches(model: Any, rng: random.Random, kv: KVQuantization | None = None) -> list[Any]:
    """Caches like the model's own, but with hardly any reserve: they compact every few tokens."""
    reserve, slack = rng.randrange(0, 9), rng.randrange(1, 6)
    return [
        RotatingKVCache(layer.window, reserve, slack, kv and kv.of_layer(layer.window))
        if layer.window
        else KVCache(kv=kv and kv.of_layer(None))
        for layer in model.config.layers
    ]


def in_chunks(model: Any, ids: mx.array, cuts: Sequence[int], cache: Sequence[Any]) -> mx.array:
    """The logits of ids [B, L], read in pieces of these sizes into a cache."""
    logits, start = [], 0
    for size in cuts:
        logits.append(model(ids[:, start : start + size], cache))
        start += size
    return mx.concatenate(logits, axis=1)


class Always(DraftScheduler):
    """Chooses the same number of draft tokens for every step."""

    def choose(self) -> int:
        return self.max_drafts


def greedy_tokens(model: Any, prompt: list[int], count: int, step_size: int = 2048) -> list[int]:
    """What the model says after a prompt, most probable tokens only."""
    cache = model.make_cache()
    return list(islice(TokenStream(model, prefill(model, prompt, cache, step_size), cache, Greedy()), count))


def roll_dice(max_num: int) -> int:
    """Roll a dice with the number 1 to N. User can select the number N.

    Args:
        max_num: Max number of the dice
    """
    return max_num - 2


#: The tool of the documentation of EXAONE 4.0, with its type `int`.
ROLL_DICE = {
    "type": "function",
    "function": {
        "name": "roll_dice",
        "description": "Roll a dice with the number 1 to N. User can select the number N.",
        "parameters": {
            "type": "object",
            "required": ["max_num"],
            "properties": {"max_num": {"type": "int", "description": "Max number of the dice"}},
        },
    },
}


def get_weather(city: str) -> dict[str, Any]:
    """Get the current weather of a city.

    Args:
        city: Name of the city
    """
    return {"temperature": 11, "condition": "rainy"}


def call_text(name: str = "roll_dice", **arguments: Any) -> str:
    """A tool call as the model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Returns once the condition holds. Fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition does not come true"
        time.sleep(0.005)


def hold(worker: Worker) -> threading.Event:
    """Keeps the thread of a worker busy until the event is set."""
    go, begun = threading.Event(), threading.Event()

    def work() -> Iterator[None]:
        begun.set()
        go.wait(20)
        yield

    worker.submit(work())
    assert begun.wait(20)
    return go


def run_all(threads: Iterable[threading.Thread]) -> None:
    """Starts all threads, and waits until all have ended."""
    started = list(threads)
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns in a thread of its own.

    The thread clears its streams at its end: MLX's CPU backend (0.32) may abort the process otherwise.
    """
    results = []

    def run() -> None:
        results.append(work())
        mx.clear_streams()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def distance(a: mx.array, b: mx.array) -> float:
    """The largest absolute difference."""
    return mx.max(mx.abs(a.astype(mx.float32) - b.astype(mx.float32))).item()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of the `browser` tests are not imported where these are deselected: gradio and playwright take seconds."""
    browser_files = ("test_app_api.py", "test_app_browser.py", "test_jupyter_browser.py")
    return True if "not browser" in config.option.markexpr and collection_path.name in browser_files else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """The collected tests live to the end: the garbage collector walks through none of their objects."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data that may be read by tests and not be part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it holds EXAONE's own tokenizer and prompts, whose licence keeps them out")
    return SHARED


@pytest.fixture(scope="session")
def real(shared: Path) -> Tokenizer:
    """EXAONE's own tokenizer, with the demo's template."""
    backend = tokenizers.Tokenizer.from_file(str(shared / "tokenizer" / "tokenizer.json"))
    config = json.loads((shared / "tokenizer" / "tokenizer_config.json").read_text())
    return Tokenizer(backend, config, ChatTemplate.find(DEMO_FOLDER, {}))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The demo's tokenizer."""
    return Tokenizer.from_pretrained(DEMO_FOLDER)


@pytest.fixture(scope="session")
def demo() -> tuple[Any, Any]:
    """The demo model in float32, and its tokenizer."""
    return load("demo", dtype="float32")


@pytest.fixture(scope="session")
def unread(demo: tuple[Any, Any]) -> tuple[Any, Any]:
    """A tiny random model with the demo's tokenizer and context, for tests that do not depend on its replies."""
    from scripted import ScriptedModel  # which imports this file

    return ScriptedModel.tiny(demo[1]), demo[1]


@pytest.fixture
def scripted(unread: tuple[Any, Any]) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """scripted(*replies, …) sets what the model of `unread` says next, and returns it with its tokenizer."""
    model = unread[0]

    def play(*replies: Any, **options: Any) -> tuple[Any, Any]:
        model.script.play(*replies, **options)
        return unread

    yield play
    model.script.play()


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A copy of the demo checkpoint that a test may damage."""
    return shutil.copytree(DEMO_FOLDER, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("recipe"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A hub with an empty cache, without a token and without proxies, also for child processes."""
    from fake_hub import FileServer
    from huggingface_hub import constants

    files = {
        "config.json": (DEMO_FOLDER / "config.json").read_bytes(),
        "model.safetensors": random.Random(0).randbytes(10**6),
    }
    hub = FileServer(files)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    address = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HF_TOKEN", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.close()


@pytest.fixture
def exaone(hub: Any) -> Any:
    """A hub whose repositories hold the demo model."""
    files = [file for file in DEMO_FOLDER.iterdir() if file.suffix in (".json", ".jinja", ".safetensors")]
    hub.files = {file.name: file.read_bytes() for file in files}
    return hub


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """edit_json(file, key=value, …) changes a JSON file; a value of None removes the key."""

    def edit(file: Path, **changes: Any) -> None:
        values = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return edit


# --- the command line: a model in place of one that is read anew ----------------------------------------------


@pytest.fixture
def demo_tokenizer(demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands take the tokenizer of `demo`."""

    def from_pretrained(folder: Path, nfc: bool = True) -> Tokenizer:
        made: Tokenizer = demo[1] if nfc else copy.copy(demo[1])
        made.nfc = nfc
        return made

    monkeypatch.setattr("exaone4_mlx.text.tokenizer.Tokenizer.from_pretrained", from_pretrained)


@pytest.fixture
def demo_model(demo: tuple[Any, Any], demo_tokenizer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands take the model and the tokenizer of `demo`."""
    monkeypatch.setattr("exaone4_mlx.model.pretrained.load_network", lambda kind, folder, **options: demo[0])


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command fails with "the weights are being read" where it would read them."""

    def load_network(*args: Any, **options: Any) -> None:
        raise RuntimeError("the weights are being read")

    monkeypatch.setattr("exaone4_mlx.model.pretrained.load_network", load_network)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """machine(limit, physical) sets the physical memory in MB, and the part that a model can use."""

    def make(limit: float, physical: float) -> None:
        monkeypatch.setattr("exaone4_mlx.measure.fit.memory_of_this_machine", lambda: int(limit * 1e6))
        monkeypatch.setattr("exaone4_mlx.measure.fit.physical_memory", lambda: int(physical * 1e6))

    return make


@pytest.fixture(scope="session")
def quantized_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo in three and six bits."""
    return convert("demo", tmp_path_factory.mktemp("quantized") / "model", recipe="mixed_3_6", search=False).path
