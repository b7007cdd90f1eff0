"""Other engines for `bench`: mlx-lm and transformers.

Notes:
- transformers imports torch. This module does not: transformers makes the tensors, and they are never read.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import quantize_layers
from .engines import REPLY_TOKENS, build_seconds, nbytes, one_token_flags, quantization_of, seconds_of

#: The packages that each peer needs.
PEERS = {"mlx-lm": ("mlx_lm",), "transformers": ("transformers", "torch")}


def check_installed(peer: str) -> None:
    """Raises ValueError for an unknown peer, and for a peer whose packages are not installed."""
    if peer not in PEERS:
        raise ValueError(f"there is no peer {peer!r}; there are {' and '.join(PEERS)}")
    if missing := [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{peer} is not installed here: pip install {' '.join(missing).replace('_', '-')}")


class MlxLm:
    """mlx-lm's model and loop, on the same folder."""

    name = "mlx-lm"

    def __init__(self, ours: Exaone4ForCausalLM, folder: Path, step_size: int, dtype: mx.Dtype | None = None) -> None:
        """Loads the folder with `mlx_lm.load`, and quantizes the layers that `ours` has quantized while loading.

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
        """As in `mlx_lm.chat`: each message is rendered alone and appended to the cache."""
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
        return [sys.executable, "-m", "mlx_lm", "generate", "--model", str(self._folder), *one_token_flags(prompt)]

    def _steps(self, ids: Sequence[int], count: int) -> Iterator[Any]:
        """`count` tokens. Like ours, it starts the next step before it yields a token."""
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

    def logits(self, prompts: Sequence[Sequence[int]], kept: int) -> list[mx.array]:
        """The logits of the last `kept` tokens of each prompt, [kept, V] each."""
        found = []
        for ids in prompts:
            tensors = self._as_tensors({"input_ids": [list(ids)]}, tensor_type="pt")
            found.append(
                mx.array(self._model(**tensors, logits_to_keep=kept, use_cache=False).logits[0].detach().numpy())
            )
        return found

    def _times(self, ids: Sequence[int], count: int) -> list[float]:
        """Seconds from the call until the prompt is processed, and until each token."""
        tensors = self._as_tensors({"input_ids": [list(ids)]}, tensor_type="pt")
        times = _TokenTimes()
        with _without_noise():
            self._model.generate(**tensors, max_new_tokens=count, do_sample=False, streamer=times)
        return times.seconds


class _TokenTimes:
    """A streamer of transformers: `put` gets the prompt, then each token."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: list[float] = []

    def put(self, value: object) -> None:
        self.seconds.append(time.perf_counter() - self._started)

    def end(self) -> None:
        pass


def _quantize_alike(theirs: Any, ours: Any) -> None:
    """Gives a model in full precision the quantized layers of `ours`, and their weights."""
    wanted = quantization_of(ours)
    if wanted and not quantization_of(theirs):
        quantize_layers(theirs, wanted)
        theirs.update(ours.parameters())


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hides warnings: mlx-lm warns that torch is missing, and transformers warns about settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
