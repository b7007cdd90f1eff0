"""Engines that run a model for `bench`: the protocol, this package's own, and how all are measured in turn.

Notes:
- Each engine works as its own command line does: with its own loop, and its own way to continue a conversation.
- Decoding is greedy and endless: a stop token does not end it.
- The first engine changes each round, so that other work of the machine affects all engines alike. A ratio compares
  figures that were measured next to each other.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.quantize import Quantization
from ..conversation.chat import Chat
from ..generation.decode import Sampler, TokenStream
from ..generation.options import Sampling
from ..generation.prefill import prefill
from ..generation.prompt_cache import PromptCache
from ..model.kv import KVQuantization
from ..model.led import own_config
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer
from .sizes import row_bytes, weight_shapes

#: What must be installed for each engine that is not ours.
PEERS = {"mlx-lm": ("mlx_lm",), "transformers": ("transformers", "torch")}
BUILT_STEPS = 32  # decode steps per measurement of `build_seconds`
REPLY_TOKENS = 8  # of each reply in a conversation


class Engine(Protocol):
    """Runs the model. Times are in seconds; None means that the engine cannot do it."""

    name: str
    weights_bytes: int  # that MLX holds for this engine

    def prefill(self, ids: Sequence[int]) -> float:
        """Reads a prompt until the next token is known."""

    def decode(self, ids: Sequence[int], count: int) -> float:
        """Generates `count` tokens, after a prompt and the token that follows it."""

    def conversation(self, messages: Sequence[str]) -> list[float] | None:
        """The time from each message of a conversation to the first token of its reply."""

    def build(self) -> float | None:
        """Python's share of one decode step: builds the graph, and does not wait for the result."""

    def command(self, prompt: str) -> list[str] | None:
        """The command line that generates one token with the stored folder."""


class Ours:
    name = "exaone4_mlx"

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        folder: Path,
        step_size: int,
        kv: KVQuantization | None = None,
    ) -> None:
        self._model, self._tokenizer, self._folder, self._step_size = model, tokenizer, folder, step_size
        self._kv = kv
        self.weights_bytes = nbytes(model)

    def prefill(self, ids: Sequence[int]) -> float:
        started = time.perf_counter()
        fused = self._model.fused()
        mx.eval(mx.argmax(prefill(fused, ids, self._model.make_cache(self._kv), self._step_size), axis=-1))
        return time.perf_counter() - started

    def decode(self, ids: Sequence[int], count: int) -> float:
        fused = self._model.fused()
        cache = self._model.make_cache(self._kv)
        logits = prefill(fused, ids, cache, self._step_size)
        greedy = Sampler(Sampling(temperature=0.0, top_p=1.0), ids, fused.config.vocab_size)
        return seconds_of(TokenStream(fused, logits, cache, greedy), count)

    def conversation(self, messages: Sequence[str]) -> list[float]:
        greedy, cache = Sampling(temperature=0.0), PromptCache(self._model, self._tokenizer, kv=self._kv)
        chat = Chat(self._model, self._tokenizer, sampling=greedy, max_tokens=REPLY_TOKENS, prompt_cache=cache)
        seconds = []
        for message in messages:
            started = time.perf_counter()
            reply = chat.send(message, prefill_step_size=self._step_size)
            next(iter(reply))
            seconds.append(time.perf_counter() - started)
            for _ in reply:
                pass
            chat.settle()  # as in idle time between turns
        return seconds

    def build(self) -> float:
        return build_seconds(self._model.fused())

    def command(self, prompt: str) -> list[str] | None:
        if self._model.ranks is not None:
            return None
        adapters = [("--adapter-path", one.name, "--adapter-scale", str(scale)) for one, scale in self._model.adapters]
        flags = ["--model", str(self._folder), *(flag for flags in adapters for flag in flags)]
        return [sys.executable, "-m", "exaone4_mlx.generate", *flags, *one_token_flags(prompt)]


def seconds_of(tokens: Iterator[Any], count: int) -> float:
    """The seconds that `count` tokens take, after a first one."""
    next(tokens)
    started = time.perf_counter()
    for _ in range(count):
        next(tokens)
    return time.perf_counter() - started


def build_seconds(model: Any, evaluates: bool = True) -> float:
    """The seconds that Python takes to build the graph of one greedy decode step: the median of BUILT_STEPS.

    `model` is ours or one of mlx-lm's. `evaluates` evaluates each step before the next one is built.
    """
    cache, token, seconds = model.make_cache(), mx.array([1]), []
    mx.eval(model(mx.array([[1] * 16]), cache))
    for _ in range(BUILT_STEPS):
        started = time.perf_counter()
        token = mx.argmax(model(token[None], cache)[:, -1], axis=-1)
        seconds.append(time.perf_counter() - started)
        if evaluates:
            mx.eval(token)
    return sorted(seconds)[BUILT_STEPS // 2]


def nbytes(model: Any) -> int:
    """Bytes of the weights of a model as stored."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def bytes_per_token(model: Exaone4ForCausalLM, depth: float, kv: KVQuantization | None = None) -> int:
    """Bytes that one decode step reads: stored weights, one row of the embedding, keys and values of `depth` tokens.

    With tied embeddings the head reads all rows, and the embedding reads one more. `kv` is the quantization of caches.
    """
    config, dtype_size = own_config(model), model.model.norm.weight.dtype.size
    embeddings = nbytes(model.model.embed_tokens)
    weights = nbytes(model) - (0 if config.tie_word_embeddings else embeddings)
    attended = 0.0
    for layer in config.layers:
        rows = depth if layer.window is None else min(depth, layer.window)
        attended += rows * row_bytes(config, dtype_size, kv and kv.of_layer(layer.window))
    return int(weights + embeddings / config.vocab_size + attended)


def bits_per_weight(model: Exaone4ForCausalLM) -> float:
    """Bits per weight as stored, including scales and biases."""
    part, shapes = model.part, weight_shapes(model.config)
    if part is not None:
        cuts = {name: part.cut(name) for name in shapes if part.has(name)}
        shapes = {name: cut.shape(shapes[name]) if cut else shapes[name] for name, cut in cuts.items()}
    return 8 * nbytes(model) / sum(map(math.prod, shapes.values()))


def quantization_of(model: Any) -> dict[str, Quantization]:
    """The quantization of each quantized layer, by name."""
    return {
        name: Quantization(layer.bits, layer.group_size, layer.mode)
        for name, layer in model.named_modules()
        if hasattr(layer, "group_size")
    }


def one_token_flags(prompt: str) -> list[str]:
    return ["--prompt", prompt, "--max-tokens", "1", "--temp", "0"]


# --- measured in turn ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """The measurements of one engine in one test: for each figure the seconds of each round; and MLX's highest peak."""

    seconds: tuple[Sequence[float], ...]
    peak_bytes: int


def take_turns(
    engines: Sequence[Engine], measure: Callable[[Engine], Sequence[float] | None], repeat: int
) -> dict[str, Samples]:
    """Measures all engines `repeat` times, in turn, in reverse order in every other round.

    A first round warms up and does not count. An engine for which `measure` returns None is left out.
    """
    able = [engine for engine in engines if measure(engine) is not None]
    rounds: dict[str, list[Sequence[float]]] = {engine.name: [] for engine in able}
    peaks = dict.fromkeys(rounds, 0)
    for turn in range(repeat):
        for engine in able if turn % 2 == 0 else reversed(able):
            mx.clear_cache()  # no engine reuses the buffers of another one
            others = mx.get_active_memory() - engine.weights_bytes
            mx.reset_peak_memory()
            seconds = measure(engine)
            assert seconds is not None
            rounds[engine.name].append(seconds)
            peaks[engine.name] = max(peaks[engine.name], mx.get_peak_memory() - others)
    return {name: Samples(tuple(zip(*seconds, strict=True)), peaks[name]) for name, seconds in rounds.items()}
