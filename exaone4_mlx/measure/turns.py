"""Measures engines in turn.

Notes:
- The first engine changes each round, so that other work of the machine affects all engines alike. A ratio compares
  figures that were measured next to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from .engines import Engine


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
