"""Engines that run a model for `bench`: the protocol, and this package's own.

Notes:
- Each engine works as its own command line does: with its own loop, and its own way to continue a conversation.
- Decoding is greedy and endless: a stop token does not end it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.quantize import Quantization
from ..conversation.chat import Chat
from ..generation.decode import TokenStream, prefill
from ..generation.options import Sampling
from ..generation.prompt_cache import PromptCache
from ..generation.sampling import Sampler
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer

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

    def command(self, prompt: str) -> list[str]:
        folder = str(self._folder)
        return [sys.executable, "-m", "exaone4_mlx.generate", "--model", folder, *one_token_flags(prompt)]


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


def quantization_of(model: Any) -> dict[str, Quantization]:
    """The quantization of each quantized layer, by name."""
    return {
        name: Quantization(layer.bits, layer.group_size, layer.mode)
        for name, layer in model.named_modules()
        if hasattr(layer, "group_size")
    }


def one_token_flags(prompt: str) -> list[str]:
    return ["--prompt", prompt, "--max-tokens", "1", "--temp", "0"]
