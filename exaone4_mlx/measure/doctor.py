"""Checks that the demo model computes correctly with MLX's backend on this machine.

Notes:
- The expected logits are stored in this file. transformers computed them in float32 on a CPU.
- A GPU may round the factors of float32 products (TF32: an M5, NVIDIA). The limits are wider there.
- A check that raises an error has failed. The other checks still run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import mlx.core as mx

from ..generation.generate import generate
from ..generation.options import Sampling
from ..generation.prefill import prefill
from ..model.kv import QuantizedKV
from ..model.layer import attend
from ..model.load import load
from ..model.network import Exaone4ForCausalLM
from ..text.message import Reply
from ..text.tokenizer import Tokenizer

T = TypeVar("T")
#: (whether the check passes, the figure, the limit)
Finding = tuple[bool, str, str]

#: Three times, so that its 115 tokens are several of the demo's windows of 32.
TEXT = "Which one is bigger, 3.12 vs 3.9? 너가 얼마나 대단한지 설명해 봐. Explica lo increíble que eres. " * 3
#: Of the prompt TEXT: position, then the logits of the tokens 7, 500, 1500 and 2900, the best token, and its logit.
#: From transformers, float32; tests/measure/test_doctor.py compares again.
STORED = (
    (14, -1.7346, -1.6311, -3.6621, -2.8973, 42, 18.9245),
    (34, 0.5110, -0.2824, -3.7378, -1.7640, 38, 16.2937),
    (54, 0.9653, -3.1915, 0.6109, -0.5186, 396, 10.0405),
    (74, 0.2164, 0.6998, 2.9999, -3.2566, 38, 16.7147),
    (94, 0.1306, 0.1306, 1.7121, -0.9145, 799, 11.8079),
    (114, -0.8710, 1.0731, 1.6559, -2.4710, 43, 18.7458),
)
STORED_TOKENS = (7, 500, 1500, 2900)
QUESTION = "Which one is bigger, 3.12 vs 3.9?"
THOUGHT = "Integer parts 3 and 3: =. Decimals 12 and 90: <."
ANSWER = "3.9 is bigger than 3.12."
PACKAGES = ("mlx", "mlx-lm", "tokenizers")
DETOUR = 45  # tokens that are read and taken back

#: The largest differences of logits that pass (they go up to 28): to the stored ones, and between two ways to compute
#: the same; the last where float32 products are rounded, for which 6e-3 are to be expected.
STORED_LIMIT, SAME_LIMIT, ROUNDED_LIMIT = 1e-2, 2e-3, 5e-2
#: Of products, as parts of the largest entry: what shows that factors are rounded (float32 itself differs by 1e-6, TF32
#: by 2e-4), and what passes then; and what passes of quantized ones. MLX's CPU backend sums those in their own dtype.
ROUNDED_ABOVE, ROUNDED_PRODUCT_LIMIT = 2e-5, 5e-3
QUANTIZED_LIMITS = {mx.float32: 1e-4, mx.float16: 2e-2, mx.bfloat16: 1e-1}


@dataclass(frozen=True)
class Check:
    """The result of one check: its figure and limit, or the error that it raised."""

    name: str
    ok: bool
    figure: str = ""
    limit: str = ""
    error: str = ""


def examine() -> Iterator[Check]:
    """Runs the checks of this machine one by one."""
    yield from run_checks(CHECKS, Demo())


def run_checks(checks: Mapping[str, Callable[[T], Finding]], subject: T) -> Iterator[Check]:
    """Runs `checks` on `subject` one by one. An exception of a check is its result."""
    for name, check in checks.items():
        try:
            ok, figure, limit = check(subject)
            yield Check(name, ok, figure, limit)
        except Exception as error:
            yield Check(name, False, error=f"{type(error).__name__}: {error}")


class Demo:
    """The demo model in float32, and its logits for TEXT."""

    @cached_property
    def _loaded(self) -> tuple[Exaone4ForCausalLM, Tokenizer]:
        return load("demo", dtype="float32")

    @property
    def model(self) -> Exaone4ForCausalLM:
        return self._loaded[0]

    @property
    def tokenizer(self) -> Tokenizer:
        return self._loaded[1]

    @cached_property
    def ids(self) -> list[int]:
        return self.tokenizer.encode(TEXT)

    @cached_property
    def logits(self) -> mx.array:
        """Those of the whole text at once, without a cache, [L, V]."""
        return self.model(mx.array([self.ids]))[0]

    def compared(self, logits: mx.array, others: mx.array, limit: float = SAME_LIMIT) -> Finding:
        return within(distance(logits, others), ROUNDED_LIMIT if self.rounds else limit)

    @property
    def rounds(self) -> bool:
        """Whether this machine rounds the factors of float32 products."""
        return self.product_error > ROUNDED_ABOVE

    @cached_property
    def product_error(self) -> float:
        """How far a float32 product is from the CPU's, as a part of its largest entry."""
        keys = mx.random.split(mx.random.key(0))
        left = mx.random.normal((115, 256), key=keys[0])  # as the demo's first projections of TEXT
        right = mx.random.normal((256, 512), key=keys[1])
        mx.eval(left, right)
        return relative_distance(mx.matmul(left, right), mx.matmul(left, right, stream=mx.cpu))


# --- the checks -----------------------------------------------------------------------------------------------


def _products(demo: Demo) -> Finding:
    return within(demo.product_error, ROUNDED_PRODUCT_LIMIT)


def _stored(demo: Demo) -> Finding:
    positions = mx.array([row[0] for row in STORED])
    wanted = mx.array([[*row[1:5], row[6]] for row in STORED])
    tokens = mx.array([[*STORED_TOKENS, row[5]] for row in STORED])
    return demo.compared(mx.take_along_axis(demo.logits[positions], tokens, axis=1), wanted, STORED_LIMIT)


def _cached(demo: Demo) -> Finding:
    return demo.compared(_in_chunks(demo, 1), demo.logits)


def _chunked(demo: Demo) -> Finding:
    return demo.compared(_in_chunks(demo, 23), demo.logits)


def rewound(subject: Any, kept: int) -> Finding:
    """The logits of the last `kept` tokens, after other tokens that were taken back; `subject` is as `Demo`."""
    cache, ids = subject.model.make_cache(), subject.ids
    prefill(subject.model, ids[:-kept], cache)
    for start in range(0, DETOUR, 5):  # beyond a window of the demo, with other tokens than those that follow
        prefill(subject.model, ids[start : start + 5], cache)
    for layer in cache:
        layer.rewind(DETOUR)
    return subject.compared(subject.model(mx.array([ids[-kept:]]), cache)[0], subject.logits[-kept:])


def _padded(demo: Demo) -> Finding:
    """Rows of different lengths in one batch, padded on the left and on the right."""
    rows, pad = [demo.ids[:40], demo.ids[50:67]], [demo.model.config.pad_token_id or 0] * 23
    left, right = [rows[0], pad + rows[1]], [rows[0], rows[1] + pad]
    here = [1] * 17
    ours = demo.model.forward(mx.array(left), mx.array([[1] * 40, [0] * 23 + here])).logits
    theirs = demo.model.forward(mx.array(right), mx.array([[1] * 40, here + [0] * 23])).logits
    alone = [demo.model(mx.array([row]))[0] for row in rows]
    return demo.compared(
        mx.concatenate([ours[0], ours[1, 23:], theirs[0], theirs[1, :17]]), mx.concatenate([*alone, *alone])
    )


def _quantized(bits: int, dtype: mx.Dtype, demo: Demo) -> Finding:
    """Of one row, as in decoding, and of many, as in a prompt: different kernels."""
    keys = mx.random.split(mx.random.key(bits))
    parts = mx.quantize(mx.random.normal((384, 256), key=keys[0]).astype(dtype), group_size=64, bits=bits)
    packed, scales, biases = parts
    exact = (packed, scales.astype(mx.float32), biases.astype(mx.float32))
    weight = mx.dequantize(*exact, group_size=64, bits=bits)
    worst = 0.0
    for rows in (1, 40):
        x = mx.random.normal((rows, 256), key=keys[1]).astype(dtype)
        product = mx.quantized_matmul(x, *parts, transpose=True, group_size=64, bits=bits)
        wanted = x.astype(mx.float32) @ weight.T
        worst = max(worst, relative_distance(product, wanted))
    rounded = dtype == mx.float32 and demo.rounds
    return within(worst, ROUNDED_PRODUCT_LIMIT if rounded else QUANTIZED_LIMITS[dtype])


def _packed(bits: int, demo: Demo) -> Finding:
    """Attention to a quantized cache, compared with attention to its dequantized values."""
    key = mx.random.split(mx.random.key(bits), 3)
    keys, values = (QuantizedKV.of(mx.random.normal((1, 2, 100, 64), key=key[i]), 64, bits) for i in range(2))
    worst = 0.0
    for length, mask in ((1, None), (5, "causal")):
        queries = mx.random.normal((1, 4, length, 64), key=key[2])
        wanted = attend(queries, keys.dequantized(), values.dequantized(), mask, 0.125)
        worst = max(worst, relative_distance(attend(queries, keys, values, mask, 0.125), wanted))
    return within(worst, ROUNDED_PRODUCT_LIMIT if demo.rounds else QUANTIZED_LIMITS[mx.float32])


def _reply(demo: Demo) -> Finding:
    return _same_text(_text(_greedy_reply(demo.model, demo.tokenizer)))


def _reply_with_guesses(demo: Demo) -> Finding:
    """The model guesses for itself, so that most of it is right."""
    reply = _greedy_reply(demo.model, demo.tokenizer, draft_model=demo.model)
    ok, figure, limit = _same_text(_text(reply))
    guessed = f"{reply.accepted_tokens} of {reply.drafted_tokens} guesses right"
    return ok and reply.accepted_tokens > 0, f"{figure}, {guessed}", limit


def _reply_in_a_thread(demo: Demo) -> Finding:
    """Of a model loaded here: an array that loading left to be computed would fail there."""
    loaded = load("demo", dtype="float32")
    replies: list[str | Exception] = []

    def work() -> None:
        try:
            replies.append(_text(_greedy_reply(*loaded)))
        except Exception as error:
            replies.append(error)
        mx.clear_streams()  # MLX's CPU backend (0.32) may abort the process otherwise

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(replies[0], Exception):
        raise replies[0]
    return _same_text(replies[0])


CHECKS: dict[str, Callable[[Demo], Finding]] = {
    "float32 products, beside the CPU's": _products,
    "logits, beside the stored ones": _stored,
    "token by token, beside all at once": _cached,
    "in chunks, beside all at once": _chunked,
    "rewound past a window, beside never gone there": partial(rewound, kept=45),
    "a padded batch, beside row by row": _padded,
    **{
        f"{bits}-bit products in {str(dtype).removeprefix('mlx.core.')}, beside dequantized ones": partial(
            _quantized, bits, dtype
        )
        for bits in (4, 8)
        for dtype in QUANTIZED_LIMITS
    },
    **{f"attention to a cache of {bits} bits, beside unpacked": partial(_packed, bits) for bits in (4, 8)},
    "a greedy reply": _reply,
    "the same with guesses": _reply_with_guesses,
    "the same in another thread": _reply_in_a_thread,
}


# --- for all --------------------------------------------------------------------------------------------------


def distance(a: mx.array, b: mx.array) -> float:
    """The largest absolute difference; NaN if there is one among them."""
    return float(mx.max(mx.abs(a.astype(mx.float32) - b.astype(mx.float32))).item())  # type: ignore[arg-type]


def relative_distance(a: mx.array, b: mx.array) -> float:
    """The same, as a part of the largest entry of b."""
    return distance(a, b) / distance(b, mx.zeros_like(b))


def _in_chunks(demo: Demo, size: int) -> mx.array:
    """The logits of the text, read so many tokens at a time, [L, V]."""
    cache, ids = demo.model.make_cache(), demo.ids
    parts = [demo.model(mx.array([ids[i : i + size]]), cache)[0] for i in range(0, len(ids), size)]
    return mx.concatenate(parts)


def _greedy_reply(model: Exaone4ForCausalLM, tokenizer: Tokenizer, **options: Any) -> Reply:
    return generate(model, tokenizer, QUESTION, thinking=True, sampling=Sampling(temperature=0.0), **options)


def _text(reply: Reply) -> str:
    return f"{reply.thinking} {reply.text}"


def _same_text(text: str) -> Finding:
    """The finding names both texts where they differ."""
    wanted = f"{THOUGHT} {ANSWER}"
    return (True, "as stored", "") if text == wanted else (False, f"{text!r} instead of {wanted!r}", "")


def within(figure: float, limit: float) -> Finding:
    return figure <= limit, f"{figure:.2g}", f"{limit:g}"
