"""Checks of one model on this machine: `doctor --model`.

Notes:
- All are in float32 if the weights have room for it, else in the dtype of the checkpoint, with wider limits. A
  difference is a part of the largest logit.
- The text is longer than a sliding window, and the last tokens of it are compared.
- transformers reads the same folder, before this package does, so that only one of the two models is in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

import mlx.core as mx

from ..conversion.convert import convert
from ..conversion.evaluate import evaluate
from ..conversion.texts import HELD_OUT, encode, read_passages
from ..generation.generate import generate
from ..generation.prefill import prefill
from ..model.cache import Cache
from ..model.load import load
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import open_checkpoint
from ..text.tokenizer import Tokenizer
from .doctor import DETOUR, ROUNDED_PRODUCT_LIMIT, Check, Demo, Finding, relative_distance, rewound, run_checks, within
from .fit import fit
from .peers import Transformers, check_installed

KEPT = 32  # tokens at the end of the text that are compared
LEAST_TOKENS = 256
REPLY_TOKENS = 48
LIMITS = {mx.float32: 2e-4, mx.float16: 2e-2, mx.bfloat16: 1e-1}
KL_LIMIT = 1.0  # nats: 4 bits cost the demo model 0.16
EVERY_TEXT = 16  # of the held-out texts, one in so many is measured
MAX_TOKENS = 256  # of a window of a text
MOST_WEIGHTS = 16e9  # bytes of a checkpoint that is converted for its check
#: Messages of users, with and without a thought.
QUESTIONS = (
    ("Which one is bigger, 3.12 vs 3.9?", True),
    ("너가 얼마나 대단한지 설명해 봐", False),
    ("Explica lo increíble que eres", False),
)


class CheckedModel:
    """A checkpoint, and the text that its checks read."""

    def __init__(self, folder: Path, reference: str | None = None) -> None:
        """Checks the files and `reference` ("transformers" or None) before anything is loaded. Errors as for `load`."""
        self.folder, self.reference = folder, reference
        self._opened = open_checkpoint(folder, Exaone4ForCausalLM)
        self.tokenizer = Tokenizer.from_pretrained(folder)
        self.ids = self._text()
        if reference is not None:
            check_installed(reference)
            if self.is_quantized:
                raise ValueError("transformers cannot read quantized MLX weights: give the original with --reference")
        self.dtype = "float32" if fit(folder, dtype="float32", max_kv_size=len(self.ids) + DETOUR).fits else None

    @property
    def is_quantized(self) -> bool:
        return self._opened.bits_per_weight < 16

    @property
    def description(self) -> str:
        """The shape of the model. It names no folder, so that a report holds nothing personal."""
        config = self._opened.config
        window = f", windows of {config.sliding_window}" if config.sliding_window else ""
        return (
            f"{config.num_hidden_layers} layers of {config.hidden_size}{window}, {config.vocab_size} tokens, "
            f"{self._opened.bits_per_weight:.2f} bits per weight, computed in {self.dtype or 'its own dtype'}"
        )

    @cached_property
    def model(self) -> Exaone4ForCausalLM:
        return load(self.folder, dtype=self.dtype)[0]

    @cached_property
    def limit(self) -> float:
        """Of the difference between two ways to compute the same."""
        dtype = self.model.model.norm.weight.dtype
        return ROUNDED_PRODUCT_LIMIT if dtype == mx.float32 and Demo().rounds else LIMITS[dtype]

    @cached_property
    def logits(self) -> mx.array:
        """Those of the last tokens, when the text is read at once, [KEPT, V]."""
        return self._logits(self.ids)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of short conversations, and of the text."""
        chats = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": text}], enable_thinking=thinking)
            for text, thinking in QUESTIONS
        ]
        return [*chats, self.ids]

    def compared(self, logits: mx.array, others: mx.array) -> Finding:
        return within(relative_distance(logits, others), self.limit)

    def read(self, ids: list[int], cache: list[Cache]) -> mx.array:
        """The logits after reading `ids` into `cache`, [L, V]."""
        return self.model(mx.array([ids]), cache)[0]

    def _logits(self, ids: list[int]) -> mx.array:
        return self.model.forward(mx.array([ids]), logits_to_keep=KEPT, use_cache=False).logits[0]

    def _text(self) -> list[int]:
        """Tokens of held-out texts: more than a window and a detour."""
        window = self._opened.config.sliding_window or 0
        wanted = min(
            max(LEAST_TOKENS, window + 2 * (KEPT + DETOUR)), self._opened.config.max_position_embeddings - DETOUR
        )
        ids: list[int] = []
        for passage in read_passages(HELD_OUT):
            ids += encode(passage, self.tokenizer)
            if len(ids) >= wanted:
                break
        return ids[:wanted]


def examine_model(model: CheckedModel) -> Iterator[Check]:
    """Runs the checks of a model one by one. An exception of a check is its result."""
    checks = dict(CHECKS)
    if model.reference is not None:
        checks = {BESIDE_TRANSFORMERS: _beside_transformers, **checks}
    yield from run_checks(checks, model)


def _beside_transformers(model: CheckedModel) -> Finding:
    theirs = Transformers(model.folder, "float32").logits(model.prompts, KEPT)
    worst = max(
        relative_distance(model._logits(ids), wanted) for ids, wanted in zip(model.prompts, theirs, strict=True)
    )
    return within(worst, model.limit)


def _chunked(model: CheckedModel) -> Finding:
    cache, size = model.model.make_cache(), len(model.ids) // 3 | 1
    for start in range(0, len(model.ids) - KEPT, size):
        prefill(model.model, model.ids[start : min(start + size, len(model.ids) - KEPT)], cache)
    return model.compared(model.read(model.ids[-KEPT:], cache), model.logits)


def _one_by_one(model: CheckedModel) -> Finding:
    cache = model.model.make_cache()
    prefill(model.model, model.ids[:-KEPT], cache)
    return model.compared(mx.concatenate([model.read([id], cache) for id in model.ids[-KEPT:]]), model.logits)


def _greedy(model: CheckedModel) -> Finding:
    """Each token of a reply has the highest logit when prompt and reply are read at once, but for rounding."""
    prompt, ids = model.prompts[0], _reply(model)
    logits = model.model.forward(mx.array([[*prompt, *ids]]), logits_to_keep=len(ids) + 1, use_cache=False).logits[
        0, :-1
    ]
    chosen = mx.take_along_axis(logits, mx.array(ids)[:, None], axis=1)
    return within(relative_distance(chosen[:, 0], logits.max(axis=1)), model.limit)


def _with_guesses(model: CheckedModel) -> Finding:
    """The model guesses for itself, so that guesses are accepted."""
    plain, guessed = _reply(model), _reply(model, draft=True)
    return plain == guessed, "the same tokens" if plain == guessed else f"{guessed} instead of {plain}", ""


def _four_bits(model: CheckedModel) -> Finding:
    """What 4 bits cost on some held-out texts: the model is converted without a search, and measured block by block."""
    if model.is_quantized or fit(model.folder).weights_bytes > MOST_WEIGHTS:
        return True, "left out: the weights are " + ("quantized" if model.is_quantized else "large"), ""
    with tempfile.TemporaryDirectory() as folder:
        texts, converted = Path(folder, "texts.jsonl"), Path(folder, "EXAONE-4bit")
        lines = HELD_OUT.read_text(encoding="utf-8").splitlines()[::EVERY_TEXT]
        texts.write_text("\n".join(lines), encoding="utf-8")
        convert(model.folder, converted, search=False)
        row = evaluate(converted, model.folder, data=texts, max_tokens=MAX_TOKENS).rows[0]
    figure = f"KL {row.mean_kl:.3f}, perplexity {row.reference_perplexity:.4g} and {row.perplexity:.4g}"
    return row.mean_kl <= KL_LIMIT, figure, f"{KL_LIMIT:g}"


def _reply(model: CheckedModel, draft: bool = False) -> list[int]:
    reply = generate(
        model.model,
        model.tokenizer,
        model.prompts[0],
        temperature=0.0,
        max_tokens=REPLY_TOKENS,
        stop_on_repetition=False,
        draft_model=model.model if draft else None,
    )
    return list(reply.token_ids)


BESIDE_TRANSFORMERS = "logits, beside transformers'"
CHECKS: dict[str, Callable[[CheckedModel], Finding]] = {
    "in chunks, beside all at once": _chunked,
    "token by token, beside all at once": _one_by_one,
    "rewound past a window, beside never gone there": partial(rewound, kept=KEPT),
    "a greedy reply, beside all at once": _greedy,
    "the same with guesses": _with_guesses,
    "4 bits, beside the weights as they are": _four_bits,
}
