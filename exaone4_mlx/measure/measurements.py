"""What `bench` measures: a request, and one measurement for each of its tests.

Notes:
- Prompts are random but the same in each run.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..files.safetensors import read_dtype
from ..generation.options import PREFILL_STEP_SIZE
from ..model.adapter_file import AdapterPaths, Scales
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import open_checkpoint
from ..text.tokenizer import Tokenizer
from .engines import Engine
from .peers import check_installed

MESSAGE_NUMBERS = (100, 5)  # numbers in each message: the second message is short, and the cache holds the first


@dataclass(frozen=True)
class BenchRequest:
    """What to measure. Lengths are in tokens; `revision`, `dtype` and `q_bits` are those of `load`.

    Reads a prompt of each length in `prompt_tokens`, and generates `decode_tokens` tokens after a prompt of each length
    in `depths`. Measures each figure `repeat` times, after one time for warming up. `peers` are other engines. `kv`
    quantizes our caches, as for `generate`; the caches of peers are not quantized. `adapter_path` and `adapter_scale`
    are those of `load`; no peer runs beside adapters.
    Raises ValueError for an invalid value.
    """

    model: str
    prompt_tokens: tuple[int, ...] = (512, 4096)
    decode_tokens: int = 128
    depths: tuple[int, ...] = (0, 4096)
    repeat: int = 3
    peers: tuple[str, ...] = ()
    revision: str | None = None
    dtype: str | None = None
    q_bits: int | None = None
    prefill_step_size: int = PREFILL_STEP_SIZE
    kv: int | KVQuantization | None = None
    adapter_path: AdapterPaths = ()
    adapter_scale: Scales = 1.0

    def __post_init__(self) -> None:
        counts: dict[str, tuple[int, ...]]
        counts = {name: (getattr(self, name),) for name in ("decode_tokens", "repeat", "prefill_step_size")}
        counts |= {"prompt_tokens": self.prompt_tokens, "depths": self.depths}
        for name, values in counts.items():
            least = 0 if name == "depths" else 1
            if wrong := [value for value in values if value < least]:
                raise ValueError(f"{name} must be {least} or more, not {wrong[0]}")
        read_dtype(self.dtype)
        if self.adapter_path and self.peers:
            raise ValueError(f"{self.peers[0]} runs without the adapter: leave out peer, or fuse the adapter first")
        for peer in self.peers:
            check_installed(peer)

    def check_model(self, folder: Path, config: Exaone4Config) -> None:
        """Raises ValueError for lengths beyond the model's context, and for peers that cannot read the model."""
        longest = max(*self.prompt_tokens, *(depth + self.decode_tokens + 2 for depth in self.depths))
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"{longest} tokens are more than the model's context of {config.max_position_embeddings}: "
                "ask for shorter prompts and depths"
            )
        quantized = self.q_bits is not None or any(
            t.exact for t in open_checkpoint(folder, Exaone4ForCausalLM).source.tensors.values()
        )
        if "transformers" in self.peers and quantized:
            raise ValueError("transformers reads weights in full precision only, not MLX's quantized ones")


@dataclass(frozen=True)
class Measurement:
    """One test: `measure` returns seconds for each of `lengths`, or None for an engine that cannot run the test.

    `lengths` are tokens by name of the figure, or None.
    """

    lengths: Mapping[str, int | None]
    unit: str  # "tokens/s", "ms" or "s"
    measure: Callable[[Engine], Sequence[float] | None]
    depth: int | None = None

    def figure(self, name: str, seconds: float) -> float:
        if self.unit == "tokens/s":
            return (self.lengths[name] or 0) / seconds
        return 1000 * seconds if self.unit == "ms" else seconds


def measurements(request: BenchRequest, tokenizer: Tokenizer, vocab_size: int) -> Iterator[Measurement]:
    for length in request.prompt_tokens:
        ids = random_ids(length, vocab_size)
        yield Measurement({"prefill": length}, "tokens/s", partial(_prefill, ids))
    for depth in request.depths:
        ids = random_ids(max(depth, 1), vocab_size)  # a prompt has at least one token
        count = request.decode_tokens
        yield Measurement({"decode": count}, "tokens/s", partial(_decode, ids, count), depth)
    yield Measurement({"Python's share of a step": None}, "ms", _build)
    messages = [random_message(count) for count in MESSAGE_NUMBERS]
    names = ("first token, new conversation", "first token, second turn")
    lengths = {name: len(tokenizer.encode(message)) for name, message in zip(names, messages, strict=True)}
    yield Measurement(lengths, "s", lambda engine: engine.conversation(messages))
    yield Measurement({"one token, whole process": None}, "s", _start)


def _prefill(ids: Sequence[int], engine: Engine) -> list[float]:
    return [engine.prefill(ids)]


def _decode(ids: Sequence[int], count: int, engine: Engine) -> list[float]:
    return [engine.decode(ids, count)]


def _build(engine: Engine) -> list[float] | None:
    seconds = engine.build()
    return None if seconds is None else [seconds]


def _start(engine: Engine) -> list[float] | None:
    """From the start of the engine's command line to its end. Raises RuntimeError with its error message."""
    command = engine.command("Hello")
    if command is None:
        return None
    started = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - started
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {ended.stderr.strip()[-300:]}")
    return [seconds]


def random_ids(length: int, vocab_size: int) -> list[int]:
    """Random tokens, the same in each call."""
    source = random.Random(f"{length} tokens")
    return [source.randrange(vocab_size) for _ in range(length)]


def random_message(count: int) -> str:
    """A user message of random numbers, the same in each call."""
    source = random.Random(f"{count} numbers")
    return " ".join(str(source.randrange(1000)) for _ in range(count))
