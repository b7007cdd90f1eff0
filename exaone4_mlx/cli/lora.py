"""`exaone4-mlx lora`: trains an adapter."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..text.format import clean, count_text, size_text, time_text
from . import INTERRUPTED
from .flags import add_checkpoint_flags, add_model_flag, add_q_bits_flag
from .output import DIM, NORMAL, has_styles, log, note, progress_bar, results, show, show_json

if TYPE_CHECKING:
    from ..measure.sizes import Sizes
    from ..text.tokenizer import Tokenizer
    from ..tuning.examples import Example, Examples
    from ..tuning.loop import TuningStep
    from ..tuning.memory import TuningFit
    from ..tuning.report import TuningResult
    from ..tuning.request import TuningRequest

DESCRIPTION = "Trains an adapter (LoRA, DoRA) or whole layers on texts and conversations."
#: A full-precision checkpoint is quantized to these bits if it does not fit otherwise.
FEWER_BITS = 4
LEARNED = "\x1b[32m"  # green


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..tuning.request import TuningRequest

    add_model_flag(parser)
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", help="train.jsonl and perhaps valid.jsonl, test.jsonl: messages, "
        "prompt and completion, or text",
    )  # fmt: skip
    add_checkpoint_flags(parser)
    add_q_bits_flag(parser, f"quantize while loading (default: {FEWER_BITS} if memory is short)")
    parser.add_argument("--show", type=int, metavar="N", help="show what of N examples is learned, and stop")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    groups: dict[str, argparse.ArgumentParser | argparse._ArgumentGroup] = {"": parser}
    for option in dataclasses.fields(TuningRequest):
        group = option.metadata["group"]
        flags = groups.setdefault(group, groups.get(group) or parser.add_argument_group(group))
        keywords = {"default": option.default, "help": option.metadata["help"], **option.metadata["argument"]}
        if isinstance(option.default, bool):
            keywords["action"] = "store_true"
        flags.add_argument("--" + option.name.replace("_", "-"), **keywords)
    parser.set_defaults(adapter_path="adapters")


def run(options: argparse.Namespace) -> int:
    from ..files.folders import find_folder
    from ..files.svg import INSTALL_MATPLOTLIB, has_matplotlib
    from ..measure.sizes import read_sizes
    from ..model.network import Exaone4ForCausalLM
    from ..model.pretrained import load_network
    from ..text.tokenizer import Tokenizer
    from ..tuning.examples import make_examples, read_data
    from ..tuning.request import TuningRequest
    from ..tuning.tune import run_tuning

    request = TuningRequest(**{name.name: getattr(options, name.name) for name in dataclasses.fields(TuningRequest)})
    splits = read_data(options.data)
    folder = find_folder(options.model, options.revision)
    tokenizer = Tokenizer.from_pretrained(folder)
    examples = make_examples(splits, tokenizer, request.max_seq_length, request.all_turns)
    for line in examples.describe():
        note(line)
    if options.show is not None:
        for example in examples.train[: options.show]:
            show_example(example, tokenizer)
        return 0
    q_bits = choose_bits(read_sizes(folder), examples, request, options)
    if not has_matplotlib():
        note(f"without matplotlib there is no picture of the losses: {INSTALL_MATPLOTLIB}")
    with progress_bar("loading", "B") as loaded:
        model = load_network(Exaone4ForCausalLM, folder, dtype=options.dtype, q_bits=q_bits, progress=loaded)
    try:
        with progress_bar("training", " steps") as bar:

            def report(step: TuningStep) -> None:
                bar(step.step, step.steps, f"loss {step.loss:.3f}, {step.tokens_per_second:.0f} tokens/s")
                if step.valid_loss is not None:
                    note(f"step {step.step}: loss {step.loss:.4f}, validation loss {step.valid_loss:.4f}")

            result = run_tuning(model, tokenizer, examples, request, report, options.model)
    except KeyboardInterrupt:
        from ..tuning.state import STATE_NAME

        has_state = (Path(request.adapter_path or "").expanduser() / STATE_NAME).is_file()
        log("stopped" + "; the same command with --resume goes on from the last save" * has_state)
        return INTERRUPTED
    show_result(result, options)
    return 0


def choose_bits(sizes: Sizes, examples: Examples, request: TuningRequest, options: argparse.Namespace) -> int | None:
    """The bits to quantize to while loading: those of the flag, or fewer where memory asks for it.

    Raises MemoryError if the training does not fit.
    """
    from ..checkpoint.quantize import Quantization
    from ..files.safetensors import read_dtype
    from ..tuning.memory import tuning_fit

    def fit(bits: int | None) -> TuningFit:
        quantization = None if bits is None else Quantization(bits)
        return tuning_fit(
            sizes.config, sizes.weights_bytes(read_dtype(options.dtype), quantization), examples.train, request
        )

    bits: int | None = options.q_bits
    needs = fit(bits)
    can_quantize = bits is None and not sizes.is_quantized and request.fine_tune_type != "full"
    if not needs.fits and can_quantize and (fewer := fit(FEWER_BITS)).fits:
        note(f"the weights are quantized to {FEWER_BITS} bits, because otherwise the training needs {needs.arithmetic}")
        bits, needs = FEWER_BITS, fewer
    if not request.ignore_memory:
        needs.check()
    note(f"memory: about {needs.arithmetic}")
    return bits


def show_example(example: Example, tokenizer: Tokenizer) -> None:
    """The text of an example: what is learned in green, or without styles in brackets."""
    show(f"--- {example.place}: {count_text(len(example.ids), 'token')}, {example.learned_tokens:,} of them learned")
    parts = list(runs_of(example, tokenizer))
    if has_styles(results()):
        stream = getattr(results(), "drawing", results())  # which keeps escape codes
        stream.write("".join(f"{LEARNED if learned else DIM}{clean(text)}{NORMAL}" for text, learned in parts) + "\n")
    else:
        show("".join(f"⟦{text}⟧" if learned else text for text, learned in parts))


def runs_of(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """(text, whether it is learned) of the runs of tokens that are learned, or not."""
    start = 0
    for end in range(1, len(example.ids) + 1):
        if end == len(example.ids) or example.learned[end] != example.learned[start]:
            yield tokenizer.decode(example.ids[start:end]), example.learned[start]
            start = end


def show_result(result: TuningResult, options: argparse.Namespace) -> None:
    if options.json:
        values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        del values["adapter"]
        show_json(values | {"path": str(result.path), "train_loss": result.train_loss, "valid_loss": result.valid_loss})
        return
    losses = f"training loss {result.train_loss:.4f}"
    if result.valid_loss is not None:
        first = result.valid_losses[0][1]
        losses += f", validation loss {result.valid_loss:.4f} at step {result.best_step} ({first:.4f} before)"
    if result.test_loss is not None:
        losses += f", test loss {result.test_loss:.4f}"
    show(
        f"{result.path}: {count_text(result.steps, 'step')} in {time_text(result.seconds)}, {losses}\n"
        f"drift {result.drift:.4f} nats per token on other texts; {result.trained_parameters:,} trained numbers; peak "
        f"memory {size_text(result.peak_bytes)}"
    )
    command = ["exaone4-mlx", "generate", "--model", options.model, "--adapter-path", str(result.path), "--prompt"]
    note(f"try it: {shlex.join([*command, 'Hello'])}")
