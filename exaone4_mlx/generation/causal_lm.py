"""`model.generate(input_ids, …)`: transformers' call, for token ids and batches.

Notes:
- Importing this module gives `Exaone4ForCausalLM` its method `generate`: generation is above the network, and the
  network does not import it. The package takes the public names `Exaone4ForCausalLM` and `load` from here.
- It is greedy unless `do_sample` is true, as in transformers. Without max_new_tokens a row may have 8,192 new tokens.
- A row of a batch gets the tokens that it gets alone: its positions count its own tokens, and padding is not attended
  to. Rows of different lengths whose RoPE depends on the length are generated one after the other.
- A batch without padding takes the compiled form of the model.

Shapes: B rows, L tokens of the prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..model.cache import Cache
from ..model.context import AttentionContext
from ..model.fused import FusedModel
from ..model.generation_config import GenerationConfig
from ..model.inputs import check_everywhere, check_range, check_shape, read_integers
from ..model.layer import run_layers
from ..model.load import load as load
from ..model.network import Exaone4ForCausalLM as Exaone4ForCausalLM
from ..model.nonfinite import explain
from .decode import CLEAR_EVERY, LogitsCheck, NonFiniteLogits, Sampler, checked
from .generate import evaluate_weights
from .options import MAX_TOKENS, PREFILL_STEP_SIZE, Sampling
from .reply_loop import metal_memory
from .worker import Worker

#: Sampling options and the values that leave greedy decoding as it is.
SAMPLING = {"temperature": (0, 1), "top_p": (1,), "top_k": (0, 50), "min_p": (0,)}
TOP_K = 50  # transformers' default


def generate(
    model: Exaone4ForCausalLM,
    input_ids: Any = None,
    attention_mask: Any = None,
    generation_config: GenerationConfig | None = None,
    **options: Any,
) -> mx.array:
    """Token ids [B, L] -> the same ids and the generated ones, [B, L + new], int32. transformers' `generate`.

    `input_ids` is an array of MLX or NumPy, lists, or what `tokenizer(…)` returned. `attention_mask` [B, L] is 0 for
    padding, which must be on the left; by default leading `pad_token_id` are padding. Rows end with a token of
    `eos_token_id`, and are then filled with `pad_token_id`. Where the context of the model ends, the rows end.

    `options` are the fields of `GenerationConfig`: `max_new_tokens` or `max_length`, `do_sample`, `temperature`,
    `top_p`, `top_k` (50 by default, as in transformers), `min_p`, `repetition_penalty`, `num_return_sequences`, and
    `seed`, which is ours: the same seed gives the same rows. Their defaults are those of `generation_config`, or of
    `model.generation_config`.

    Raises ValueError, before anything is computed, for wrong ids or values, and for what is not offered, by name;
    TypeError for an unknown option.
    """
    if isinstance(input_ids, Mapping):
        if attention_mask is not None or set(input_ids) - {"input_ids", "attention_mask"}:
            raise ValueError(f"give input_ids and attention_mask once, not {', '.join(input_ids)} and more")
        input_ids, attention_mask = input_ids["input_ids"], input_ids.get("attention_mask")
    defaults = model.generation_config if generation_config is None else generation_config
    if not isinstance(defaults, GenerationConfig):
        raise ValueError(f"generation_config must be a GenerationConfig, not {type(defaults).__name__}")
    chosen = defaults.with_options(options)
    ids = read_integers("input_ids", input_ids)
    check_shape("input_ids", ids, ("rows", "tokens"))
    check_range("input_ids", ids, 0, model.config.vocab_size - 1)
    stops = stop_ids(model, chosen)
    pad_id = chosen.pad_token_id if chosen.pad_token_id is not None else model.config.pad_token_id
    pads = read_padding(ids, attention_mask, None if pad_id in stops else pad_id)
    if model.ranks is not None and any(pads):
        raise ValueError("several ranks do not take padding: give the rows one after the other, or of equal lengths")
    sampling = read_sampling(chosen, options)
    count = new_tokens(model, chosen, options, ids.shape[1], ids.shape[1] - min(pads))
    copies = 1 if chosen.num_return_sequences is None else chosen.num_return_sequences
    if type(copies) is not int or copies < 1 or (copies > 1 and not chosen.do_sample):
        raise ValueError(f"num_return_sequences must be a positive number, 1 without do_sample, and is {copies!r}")
    listed: Any = ids.tolist()
    rows: list[list[int]] = [row for row in listed for _ in range(copies)]
    pads = [pad for pad in pads for _ in range(copies)]
    new = generated(model, rows, pads, sampling, stops, count)
    fill = pad_id if pad_id is not None else min(stops, default=0)
    longest = max(map(len, new))
    return mx.array([[*row, *more, *[fill] * (longest - len(more))] for row, more in zip(rows, new, strict=True)])


def stop_ids(model: Exaone4ForCausalLM, chosen: GenerationConfig) -> frozenset[int]:
    """The ids that end a row."""
    ids = chosen.eos_token_id
    if ids is None:
        return model.config.stop_token_ids
    listed = [ids] if isinstance(ids, int) else list(ids)
    if not all(type(id) is int for id in listed):
        raise ValueError(f"eos_token_id must be a token id or a list of them, not {ids!r}")
    return frozenset(listed)


def read_padding(ids: mx.array, attention_mask: Any, pad_id: int | None) -> list[int]:
    """The number of padding tokens before each row."""
    if attention_mask is None:
        mask = mx.cumsum((ids != (-1 if pad_id is None else pad_id)).astype(mx.int32), axis=1) > 0
    else:
        mask = read_integers("attention_mask", attention_mask)
        check_shape("attention_mask", mask, ids.shape)
        check_everywhere((mask == 0) | (mask == 1), "attention_mask must be 1, or 0 for padding")
        mask = mask == 1
    check_everywhere(mask[:, 1:] | ~mask[:, :-1], "padding must be on the left: set tokenizer.padding_side = 'left'")
    check_everywhere(mask[:, -1], "a row of the batch has no tokens but padding")
    return (~mask).sum(axis=1).tolist()  # type: ignore[return-value]


def read_sampling(chosen: GenerationConfig, options: Mapping[str, Any]) -> Sampling:
    """How tokens are drawn. Raises ValueError for an option that would have no effect."""
    if chosen.do_sample not in (None, True, False):
        raise ValueError(f"do_sample must be True or False, not {chosen.do_sample!r}")
    penalty = 1.0 if chosen.repetition_penalty is None else chosen.repetition_penalty
    if not chosen.do_sample:
        for name, neutral in SAMPLING.items():
            if options.get(name) not in (None, *neutral):
                raise ValueError(f"{name}={options[name]!r} has no effect without do_sample=True")
        return Sampling(temperature=0.0, top_p=1.0, repetition_penalty=penalty)
    if chosen.temperature == 0:
        raise ValueError("temperature must be above 0 with do_sample=True; do_sample=False takes the best token")
    given = {name: getattr(chosen, name) for name in (*SAMPLING, "seed") if getattr(chosen, name) is not None}
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": TOP_K}
    return Sampling(**(defaults | given), repetition_penalty=penalty)


def new_tokens(
    model: Exaone4ForCausalLM, chosen: GenerationConfig, options: Mapping[str, Any], length: int, longest: int
) -> int:
    """The largest number of new tokens of a row. `length` counts padding, and `longest` does not."""
    if options.get("max_new_tokens") is not None and options.get("max_length") is not None:
        raise ValueError("give max_new_tokens or max_length, not both")
    use_length = chosen.max_new_tokens is None or options.get("max_length") is not None
    name = "max_length" if use_length and chosen.max_length is not None else "max_new_tokens"
    value = getattr(chosen, name)
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    count = MAX_TOKENS if value is None else value - length if name == "max_length" else value
    if count < 1:
        raise ValueError(f"max_length {value} leaves no room: the prompt has {length} tokens; set max_new_tokens")
    context = model.config.max_position_embeddings
    if longest >= context:
        raise ValueError(f"the prompt has {longest} tokens, and the model's context of {context} must hold new ones")
    return min(count, context - longest)


def generated(
    model: Exaone4ForCausalLM,
    rows: list[list[int]],
    pads: list[int],
    sampling: Sampling,
    stops: frozenset[int],
    count: int,
) -> list[list[int]]:
    """At most `count` new tokens of each row, the one that ends it included."""
    if len(set(pads)) > 1 and model.config.rope_parameters.depends_on_length:
        alone = [
            generated(model, [row[pad:]], [0], sampling, stops, count) for row, pad in zip(rows, pads, strict=True)
        ]
        return [new for [new] in alone]
    evaluate_weights(model)
    cut = min(pads)
    batch = PaddedBatch(model, [row[cut:] for row in rows], [pad - cut for pad in pads], sampling)
    job = Worker.of(model).submit(batch.tokens(stops, count))
    try:
        steps = list(job)
    finally:
        job.close()
    return [[token for token in row if token is not None] for row in zip(*steps, strict=True)]


def draw(samplers: Sequence[Sampler], logits: mx.array) -> mx.array:
    """The next token of each row, [B], from logits [B, V]; not evaluated yet."""
    tokens = mx.concatenate([sample(logits[row : row + 1]) for row, sample in enumerate(samplers)])
    mx.async_eval(tokens)
    return tokens


class PaddedBatch:
    """Rows of ids of one length, `pads` of them padding at the left of each row. It runs in the worker thread."""

    def __init__(self, model: Exaone4ForCausalLM, rows: list[list[int]], pads: list[int], sampling: Sampling) -> None:
        self._model, self._rows, self._pads, self._sampling = model, rows, pads, sampling

    def tokens(self, stops: frozenset[int], most: int) -> Iterator[list[int | None]]:
        """The next token of each row, None after one of `stops`; at most `most` times.

        Raises FloatingPointError if the model computes NaN or infinity.
        """
        fused, cache = self._model.fused(), self._model.make_cache()
        samplers = [self._sampler(number) for number in range(len(self._rows))]
        ids, check, ended = mx.array(self._rows), LogitsCheck(), [False] * len(self._rows)
        with metal_memory():
            for start in range(0, ids.shape[1], PREFILL_STEP_SIZE):
                hidden = self._hidden(fused, ids[:, start : start + PREFILL_STEP_SIZE], cache)
                mx.eval(hidden, [layer.buffers for layer in cache])
            logits = fused.logits(hidden)[:, -1]
            try:
                tokens = draw(samplers, checked(logits))
                for count in range(1, most + 1):
                    check.add(logits)
                    logits = self._logits(fused, tokens[:, None], cache)
                    following = draw(samplers, logits)
                    check.read()
                    drawn: Any = tokens.tolist()  # while the next ones are computed
                    yield [None if over else token for token, over in zip(drawn, ended, strict=True)]
                    ended = [over or token in stops for token, over in zip(drawn, ended, strict=True)]
                    if all(ended):
                        break
                    tokens = following
                    if count % CLEAR_EVERY == 0:
                        mx.clear_cache()
                check.finish()
            except NonFiniteLogits as error:
                row, pad = self._rows[0], self._pads[0]
                raise FloatingPointError(explain(self._model, row[pad:], fused)) from error

    def _sampler(self, number: int) -> Sampler:
        """The sampler of a row: with a seed, the row's number added to it."""
        sampling = self._sampling
        if sampling.seed is not None:
            sampling = Sampling(**{**vars(sampling), "seed": (sampling.seed + number) % 2**64})
        return Sampler(sampling, self._rows[number][self._pads[number] :], self._model.config.vocab_size)

    def _logits(self, fused: FusedModel, ids: mx.array, cache: list[Cache]) -> mx.array:
        if not any(self._pads):
            return fused(ids, cache)[:, -1]
        return fused.logits(self._hidden(fused, ids, cache))[:, -1]

    def _hidden(self, fused: FusedModel, ids: mx.array, cache: list[Cache]) -> mx.array:
        """The final hidden state of the last token of each row, [B, 1, E], for ids that continue `cache`."""
        if not any(self._pads):
            return fused.prefill(ids, cache, len(self._rows[0]))
        pads, past = mx.array(self._pads), cache[0].offset
        seen = mx.arange(past + ids.shape[1])[None] >= pads[:, None]
        context = AttentionContext(positions=past - pads, padding=seen)
        return fused.norm(run_layers(fused.layers, fused.embed(ids), cache, context, last=True))


Exaone4ForCausalLM.generate = generate
