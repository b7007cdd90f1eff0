"""The result of a run, and the files beside its adapter: report.json, a picture of the losses, and a card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..conversion.card import adapter_card
from ..conversion.prepare import describe_adapter
from ..files.folders import atomic_file
from ..files.svg import add_legend, has_matplotlib, style_axes, svg_figure
from ..model.adapter import Adapter
from ..text.format import size_text, time_text

if TYPE_CHECKING:
    from .examples import Examples
    from .request import TuningRequest

REPORT_NAME, PLOT_NAME, CARD_NAME = "report.json", "loss.svg", "README.md"
BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's palette for colour-blind readers


@dataclass(frozen=True, eq=False)
class TuningResult:
    """The adapter of a run, and what was measured. Losses are in nats per learned token; pairs are (step, loss).

    `drift` is KL(untuned ‖ tuned) in nats per token on texts of the package that no run trains on. `valid_loss` is that
    of `best_step`. `tokens` are those that were read in training, without padding.
    """

    adapter: Adapter
    path: Path | None
    steps: int
    best_step: int
    train_losses: tuple[tuple[int, float], ...]
    valid_losses: tuple[tuple[int, float], ...]
    test_loss: float | None
    drift: float
    trained_parameters: int
    parameters: int
    tokens: int
    seconds: float
    peak_bytes: int

    @property
    def train_loss(self) -> float:
        """The mean loss of the last tenth of the steps."""
        last = self.train_losses[-max(1, len(self.train_losses) // 10) :]
        return sum(loss for _, loss in last) / len(last)

    @property
    def valid_loss(self) -> float | None:
        return dict(self.valid_losses).get(self.best_step)

    def __repr__(self) -> str:
        valid = "" if self.valid_loss is None else f", validation loss {self.valid_loss:.4g}"
        return (
            f"TuningResult({self.steps} steps, best {self.best_step}, training loss {self.train_loss:.4g}{valid}, "
            f"drift {self.drift:.4g}, {self.trained_parameters:,} trained numbers)"
        )


def write_report(folder: Path, result: TuningResult, request: TuningRequest, examples: Examples) -> None:
    """Writes the three files; the picture only with matplotlib (the extra `plot`)."""
    given = dataclasses.asdict(request) | {"adapter_path": folder.name}
    names = [field.name for field in dataclasses.fields(result) if field.name not in ("adapter", "path")]
    values = {name: getattr(result, name) for name in names} | {"train_loss": result.train_loss}
    report = {"options": given, "data": list(examples.describe()), "result": values}
    with atomic_file(folder / REPORT_NAME) as stream:
        stream.write((json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    if has_matplotlib():
        write_loss_plot(folder / PLOT_NAME, result.train_losses, result.valid_losses)
    with atomic_file(folder / CARD_NAME) as stream:
        stream.write(training_card(folder.name, result, examples).encode())


def training_card(name: str, result: TuningResult, examples: Examples) -> str:
    """The README.md of a trained adapter."""
    config, training = result.adapter.config, list(_about_training(result, examples))
    about = describe_adapter(result.adapter, config.scale)
    return adapter_card(name, config.base, about, "mlx-lm", training=training)


def write_loss_plot(file: Path, train: Sequence[tuple[int, float]], valid: Sequence[tuple[int, float]]) -> None:
    """Draws the loss of each step, and the validation losses, on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    losses = [loss for _, loss in (*train, *valid) if loss > 0]
    with svg_figure(file, "Loss, in nats per learned token") as figure:
        axes = figure.add_axes((0.075, 0.12, 0.91, 0.71))
        style_axes(axes)
        axes.plot(*zip(*train, strict=True), ".", color=BLUE, label="training", gid="training", clip_on=False)
        if valid:
            xs, ys = zip(*valid, strict=True)
            axes.plot(xs, ys, color=ORANGE, linewidth=1)
            axes.plot(xs, ys, "o", color=ORANGE, label="validation", gid="validation", clip_on=False)
        if losses:
            axes.set_yscale("log")
            axes.set_ylim(min(losses) / 1.2, max(losses) * 1.2)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(losses) < 3000 * min(losses) else (1,)))
            axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_xlabel("step")
        add_legend(figure, 2)


def _about_training(result: TuningResult, examples: Examples) -> Iterator[str]:
    """The paragraphs of the card: what was measured, and the data."""
    from .. import __version__

    rows: list[tuple[str, Any]] = [
        ("steps", f"{result.steps:,}; the adapter is that of step {result.best_step:,}"),
        ("trained numbers", f"{result.trained_parameters:,}, {_percent(result)} of the model's {result.parameters:,}"),
        ("training loss", f"{result.train_loss:.4g} nats per learned token, mean of the last tenth of the steps"),
    ]
    if result.valid_loss is not None:
        first = result.valid_losses[0][1]
        rows.append(("validation loss", f"{result.valid_loss:.4g}, and {first:.4g} before"))
    if result.test_loss is not None:
        rows.append(("test loss", f"{result.test_loss:.4g}"))
    rows.append(("drift", f"{result.drift:.4g} nats per token: KL(untuned, tuned) on texts of exaone4_mlx"))
    rows.append(("cost", f"{time_text(result.seconds)}, peak memory {size_text(result.peak_bytes)}"))
    yield f"## Training\n\nIt was trained with exaone4_mlx {__version__}."
    yield "| | |\n|---|---|\n" + "\n".join(f"| {label} | {value} |" for label, value in rows)
    yield "\n".join(f"- {line}" for line in examples.describe())


def _percent(result: TuningResult) -> str:
    return f"{100 * result.trained_parameters / max(1, result.parameters):.2g} %"
