"""What can run a model, ours and others', for `bench`: each does the same work and says how long it took.

What is peculiar here:
- Each engine works as its own command line does: its own loop, its own way to go on with a conversation.
- Greedy, without an end: a token that would end the reply is a token like any other.
- transformers brings torch along. It is not imported here: tensors are made by transformers, and never read.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ..model.parameters import quantize_layers
from ..text.tokenizer import Tokenizer

#: What must be installed for each engine that is not ours.
PEERS = {"mlx-lm": ("mlx_lm",), "transformers": ("transformers", "torch")}
BUILT_STEPS = 32  # decode steps whose graphs are built for one figure
REPLY_TOKENS = 8  # of each reply in a conversation


class Engine(Protocol):
    """Runs the model. Times are in seconds; None stands for what it cannot do."""

    name: str
    weights_bytes: int  # that MLX holds for it

    def prefill(self, ids: Sequence[int]) -> float:
        """Reading a prompt, until the token after it is known."""

    def decode(self, ids: Sequence[int], count: int) -> float:
        """Making `count` tokens, after a prompt and the token that follows it."""

    def conversation(self, messages: Sequence[str]) -> list[float] | None:
        """From each message of a conversation to the first token of its reply."""

    def build(self) -> float | None:
        """Python's share of one decode step: its graph is built, and what it computes is not waited for."""

    def command(self, prompt: str) -> list[str] | None:
        """The command line that makes one token, of the folder as it is stored."""


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
        mx.eval(mx.argmax(prefill(self._model, ids, self._model.make_cache(self._kv), self._step_size), axis=-1))
        return time.perf_counter() - started

    def decode(self, ids: Sequence[int], count: int) -> float:
        cache = self._model.make_cache(self._kv)
        logits = prefill(self._model, ids, cache, self._step_size)
        greedy = Sampler(Sampling(temperature=0.0, top_p=1.0), ids, self._model.config.vocab_size)
        return seconds_of(TokenStream(self._model, logits, cache, greedy), count)

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
            chat.settle()  # as while the user reads
        return seconds

    def build(self) -> float:
        return build_seconds(self._model)

    def command(self, prompt: str) -> list[str]:
        folder = str(self._folder)
        return [sys.executable, "-m", "exaone4_mlx.generate", "--model", folder, *_one_token(prompt)]


class MlxLm:
    """mlx-lm's own model and loop, on the same folder."""

    name = "mlx-lm"

    def __init__(self, ours: Exaone4ForCausalLM, folder: Path, step_size: int, dtype: mx.Dtype | None = None) -> None:
        """Reads the folder with `mlx_lm.load`; layers that `ours` has quantized while loading become quantized alike.

        Raises ValueError for a folder that mlx-lm cannot read.
        """
        with _without_noise():
            import mlx_lm
            from mlx_lm.generate import generate_step, stream_generate

            self._model: Any
            self._tokenizer: Any
            try:
                self._model, self._tokenizer = mlx_lm.load(str(folder))[:2]
            except Exception as error:
                raise ValueError(f"mlx-lm cannot read {folder}: {error}") from error
        if dtype is not None:
            self._model.set_dtype(dtype)
        _quantize_alike(self._model, ours)
        mx.eval(self._model.parameters())
        self._folder, self._step_size = folder, step_size
        self._generate_step, self._stream_generate = generate_step, stream_generate
        self.weights_bytes = nbytes(self._model)

    def prefill(self, ids: Sequence[int]) -> float:
        started = time.perf_counter()
        for _ in self._steps(ids, 0):
            pass
        return time.perf_counter() - started

    def decode(self, ids: Sequence[int], count: int) -> float:
        return seconds_of(self._steps(ids, count + 1), count)

    def conversation(self, messages: Sequence[str]) -> list[float]:
        """As `mlx_lm.chat` goes on: each message is rendered alone, behind what its cache holds."""
        cache, seconds = self._model.make_cache(), []
        for message in messages:
            started = time.perf_counter()
            turn = [{"role": "user", "content": message}]
            ids = self._tokenizer.apply_chat_template(turn, add_generation_prompt=True)
            reply = self._stream_generate(
                self._model,
                self._tokenizer,
                ids,
                max_tokens=REPLY_TOKENS,
                prompt_cache=cache,
                prefill_step_size=self._step_size,
            )
            next(reply)
            seconds.append(time.perf_counter() - started)
            for _ in reply:
                pass
        return seconds

    def build(self) -> float:
        return build_seconds(self._model)

    def command(self, prompt: str) -> list[str]:
        return [sys.executable, "-m", "mlx_lm", "generate", "--model", str(self._folder), *_one_token(prompt)]

    def _steps(self, ids: Sequence[int], count: int) -> Iterator[Any]:
        """`count` tokens. Like ours, it begins the step after each before it hands it out."""
        return self._generate_step(
            mx.array(list(ids)), self._model, max_tokens=count, prefill_step_size=self._step_size
        )


class Transformers:
    """transformers on the CPU, in torch's eager mode, through `generate`."""

    name = "transformers"
    weights_bytes = 0

    def __init__(self, folder: Path, dtype: str) -> None:
        with _without_noise():
            import transformers

            log: Any = transformers.logging
            log.set_verbosity_error()
            log.disable_progress_bar()
            self._model: Any
            try:
                self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            except Exception as error:
                raise ValueError(f"transformers cannot read {folder}: {error}") from error
            self._as_tensors = transformers.BatchFeature
        self._model.eval()
        self._model.generation_config.eos_token_id = None

    def prefill(self, ids: Sequence[int]) -> float:
        return self._times(ids, 1)[1]

    def decode(self, ids: Sequence[int], count: int) -> float:
        times = self._times(ids, count + 1)
        return times[-1] - times[1]

    def conversation(self, messages: Sequence[str]) -> None:
        return None

    def build(self) -> None:
        return None

    def command(self, prompt: str) -> None:
        return None

    def _times(self, ids: Sequence[int], count: int) -> list[float]:
        """When the prompt was taken and each token was made, in seconds from the call."""
        tensors = self._as_tensors({"input_ids": [list(ids)]}, tensor_type="pt")
        clock = _Clock()
        with _without_noise():
            self._model.generate(**tensors, max_new_tokens=count, do_sample=False, streamer=clock)
        return clock.times


class _Clock:
    """What transformers calls a streamer: it is given the prompt, and then each token."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter() - self._started)

    def end(self) -> None:
        pass


def check_installed(peer: str) -> None:
    """Raises ValueError for a peer that does not exist, or whose packages are not there."""
    if peer not in PEERS:
        raise ValueError(f"there is no peer {peer!r}; there are {' and '.join(PEERS)}")
    if missing := [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{peer} is not installed here: pip install {' '.join(missing).replace('_', '-')}")


def seconds_of(tokens: Iterator[Any], count: int) -> float:
    """How long `count` tokens take, after one."""
    next(tokens)
    started = time.perf_counter()
    for _ in range(count):
        next(tokens)
    return time.perf_counter() - started


def build_seconds(model: Any, evaluates: bool = True) -> float:
    """How long Python takes to build the graph of one greedy decode step, the median of BUILT_STEPS.

    `model(ids, cache)` gives logits, `model.make_cache()` caches: ours, and any of mlx-lm's. `evaluates` says whether
    each step is evaluated before the next is built.
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
    """Bytes of a model's weights as they are stored."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def quantization_of(model: Any) -> dict[str, Quantization]:
    """The quantized layers of a model, by name."""
    return {
        name: Quantization(layer.bits, layer.group_size, layer.mode)
        for name, layer in model.named_modules()
        if hasattr(layer, "group_size")
    }


def _quantize_alike(theirs: Any, ours: Any) -> None:
    """Gives a model in full precision the quantized layers, and their weights, of another one."""
    wanted, there = quantization_of(ours), quantization_of(theirs)
    if wanted and not there:
        quantize_layers(theirs, wanted)
        theirs.update(ours.parameters())


def _one_token(prompt: str) -> list[str]:
    return ["--prompt", prompt, "--max-tokens", "1", "--temp", "0"]


@contextmanager
def _without_noise() -> Iterator[None]:
    """mlx-lm's import tells that there is no torch, and transformers what it would set otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
