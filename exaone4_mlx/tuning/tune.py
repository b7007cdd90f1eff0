"""`tune`: data and a model -> an adapter, which is on the model afterwards.

Notes:
- Everything that needs no training is checked first: options, data, memory, and the state that a run resumes from.
- The adapter of the step with the least validation loss is the result; without validation that of the last step.
- While it trains, the projections are replaced by trained ones. They are put back in any case, also after an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..generation.cache_file import weights_digest
from ..generation.names import refuse_unknown
from ..generation.reply_loop import metal_memory
from ..measure.sizes import weight_shapes
from ..model.adapter import Adapter, AdapterConfig
from ..model.adapter_file import write_adapter
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer
from .batches import in_order
from .drift import Untuned
from .examples import Data, Examples, make_examples, read_data
from .loop import Loop, TuningStep
from .memory import adapter_config, tuning_fit
from .report import TuningResult, write_report
from .request import TuningOptions, TuningRequest
from .state import FREE_OPTIONS, STATE_NAME, read_state, write_state
from .trained import TrainedLinear

if TYPE_CHECKING:
    from typing_extensions import Unpack


def tune(
    model: Exaone4ForCausalLM,
    tokenizer: Tokenizer,
    data: Data,
    *,
    progress: Callable[[TuningStep], None] | None = None,
    **options: Unpack[TuningOptions],
) -> TuningResult:
    """Trains an adapter on `data`, and puts it on the model. `options` are the fields of `TuningRequest`.

    `data` is a folder of mlx-lm's layout (train.jsonl, and perhaps valid.jsonl and test.jsonl), a mapping of these
    names to lists of objects, or a list of objects: {"messages": …, "tools": …}, {"prompt": …, "completion": …} or
    {"text": …}. Of a conversation, the turns of the assistant are learned. `progress` is called after each step.

    With `adapter_path` the folder gets the adapter in mlx-lm's layout, a card, report.json and loss.svg (with the extra
    `plot`), and while it trains a state, from which `resume=True` goes on.

    Raises ValueError for options and data (with file and line), MemoryError if the training does not fit, and
    FloatingPointError for a loss that is NaN. The model is then as it was.
    """
    refuse_unknown(options, [field.name for field in dataclasses.fields(TuningRequest)])
    request = TuningRequest(**options)
    examples = make_examples(read_data(data), tokenizer, request.max_seq_length, request.all_turns)
    return run_tuning(model, tokenizer, examples, request, progress)


def run_tuning(
    model: Exaone4ForCausalLM,
    tokenizer: Tokenizer,
    examples: Examples,
    request: TuningRequest,
    progress: Callable[[TuningStep], None] | None = None,
    base: str | None = None,
) -> TuningResult:
    """`tune` for examples and a request that are checked. `base` is the folder or hub id of the model."""
    config = replace(adapter_config(model.config, request), base=base)
    if config.fine_tune_type == "full" and (quantized := _quantized(model)):
        raise ValueError(f"fine_tune_type full trains the weights, and {quantized} is quantized: use lora")
    if not request.ignore_memory:
        weights_bytes = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
        tuning_fit(model.config, weights_bytes, examples.train, request).check()
    identity = identity_of(model, examples, request)
    folder = None if request.adapter_path is None else Path(request.adapter_path).expanduser()
    state = None if folder is None else folder / STATE_NAME
    if state is not None and state.exists() and not request.resume:
        raise FileExistsError(f"{state} is of a run that was interrupted: resume it, or remove the file")
    if request.resume and state is not None and not state.is_file():
        raise FileNotFoundError(f"there is no {state} to resume from; a run that has ended needs none")
    with metal_memory(), generator_kept():
        mx.reset_peak_memory()
        untuned = Untuned(model, tokenizer)
        with in_training(model, config, request.seed):
            loop = Loop(model, request, examples.train, examples.valid)
            if request.resume and state is not None:
                loop.resume(*read_state(state, loop.optimizer, identity))
            for step in loop.run():
                if folder is not None and step.step % request.save_every == 0 and step.step < step.steps:
                    write_adapter(folder, Adapter(config, loop.best))
                    write_state(folder / STATE_NAME, loop.trained(), loop.best, loop.optimizer, loop.progress, identity)
                if progress:
                    progress(step)
            peak_bytes = mx.get_peak_memory()
        adapter = Adapter(config, loop.best, str(folder or "the adapter"))
        model.set_adapters([adapter])
        done = loop.progress
        result = TuningResult(
            adapter=adapter,
            path=folder,
            steps=done.step,
            best_step=done.best_step,
            train_losses=tuple(done.train_losses),
            valid_losses=tuple(done.valid_losses),
            test_loss=loop.loss_of(list(in_order(examples.test, request.batch_size))) if examples.test else None,
            drift=untuned.divergence(model),
            trained_parameters=sum(array.size for array in loop.best.values()),
            parameters=sum(map(math.prod, weight_shapes(model.config).values())),
            tokens=done.tokens,
            seconds=done.seconds,
            peak_bytes=peak_bytes,
        )
    if folder is not None:
        write_adapter(folder, adapter)
        write_report(folder, result, request, examples)
        (folder / STATE_NAME).unlink(missing_ok=True)
    return result


def _quantized(model: Exaone4ForCausalLM) -> str | None:
    """The name of a quantized projection of the layers, if there is one."""
    modules = model.model.named_modules()
    return next((name for name, module in modules if isinstance(module, nn.QuantizedLinear)), None)


def identity_of(model: Exaone4ForCausalLM, examples: Examples, request: TuningRequest) -> dict[str, Any]:
    """What two runs with the same result have in common."""
    values = {name: value for name, value in dataclasses.asdict(request).items() if name not in FREE_OPTIONS}
    config = hashlib.sha256(json.dumps(model.config.to_dict()).encode()).hexdigest()
    return {**values, "model": f"{config} {weights_digest(tree_flatten(model.parameters()))}", "data": examples.digest}


@contextmanager
def in_training(model: Exaone4ForCausalLM, config: AdapterConfig, seed: int) -> Iterator[None]:
    """Freezes the model, but for new adapters or, with `full`, its last layers. At the end it is as it was."""
    mx.random.seed(seed)
    modules = dict(model.named_modules())
    replaced = {} if config.fine_tune_type == "full" else {name: modules[name] for name in config.modules(model.config)}
    before = dict(tree_flatten(model.parameters()))
    model.freeze()
    try:
        for name, base in replaced.items():
            trained = TrainedLinear(base, config.rank, config.scale, config.dropout, config.fine_tune_type == "dora")
            model.update_modules(tree_unflatten([(name, trained)]))
        if config.fine_tune_type == "full":
            for block in model.layers[-config.num_layers :]:
                block.unfreeze()
        mx.eval(model.parameters())
        yield
    finally:
        model.update_modules(tree_unflatten(list(replaced.items())))
        model.update(tree_unflatten(list(before.items())))
        model.unfreeze()
        model.eval()


@contextmanager
def generator_kept() -> Iterator[None]:
    """MLX's random numbers go on after the block as if it had not been there."""
    key: Any = mx.random.state
    high, low = key[0].tolist()
    try:
        yield
    finally:
        mx.random.seed((high << 32) + low)  # a seed is its key, in two parts
