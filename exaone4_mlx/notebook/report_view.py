"""A conversion, an evaluation and the memory that a model needs -> HTML tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..text.format import size_text
from .html import escaped, rows_html, seconds_text, small_html, table_html

if TYPE_CHECKING:
    from ..conversion.convert import ConversionSummary
    from ..conversion.evaluation import Evaluation
    from ..measure.fit import Fit


def summary_html(summary: ConversionSummary) -> str:
    smaller = summary.source_bytes / summary.bytes if summary.bytes else 0
    rows = {
        "folder": str(summary.path),
        "size": f"{size_text(summary.bytes)} from {size_text(summary.source_bytes)} ({smaller:.1f} times smaller)",
        "bits per weight": f"{summary.bits_per_weight:.3f}, including scales and biases",
        "parameters": f"{summary.parameters:,}",
        "time": seconds_text(summary.seconds),
        "peak memory": size_text(summary.peak_bytes),
    }
    if summary.errors:
        worst = max(summary.errors, key=lambda error: error.relative_error)
        rows["verified"] = (
            f"{len(summary.errors):,} tensors; the largest error is {100 * worst.relative_error:.1f} % "
            f"({worst.sqnr_db:.1f} dB), {worst.name}"
        )
    if summary.page:
        rows["published"] = summary.page
    notes = "".join(f"<li>{escaped(note)}</li>" for note in summary.notes)
    evaluated = "" if summary.evaluation is None else evaluation_html(summary.evaluation)
    return f"<div>{rows_html(rows)}{evaluated}{f'<ul>{notes}</ul>' if notes else ''}</div>"


def evaluation_html(evaluation: Evaluation) -> str:
    head = ("texts", "mean KL (nats)", "99 % KL (nats)", "same top-1", "perplexity", "ratio", "95 % interval")
    rows = [
        (
            row.kind,
            f"{row.mean_kl:.5f}",
            f"{row.p99_kl:.4f}",
            f"{100 * row.top1_agreement:.2f} %",
            f"{row.perplexity:.4g}",
            f"{row.perplexity_ratio:.4f}",
            row.interval,
        )
        for row in evaluation.rows
    ]
    about = (
        f"{evaluation.model} against {evaluation.reference}, on {evaluation.documents:,} texts of "
        f"{evaluation.tokens:,} tokens"
    )
    return table_html(head, rows) + small_html(about)


def fit_html(fit: Fit) -> str:
    return rows_html(
        {
            "context": f"{fit.max_kv_size:,} tokens",
            **({"conversations": f"{fit.batch_size:,}"} if fit.batch_size > 1 else {}),
            **{name: size_text(count) for name, count in fit.parts.items()},
            f"fits into {size_text(fit.memory_bytes)}": "yes" if fit.fits else "no",
            "largest context that fits": f"{fit.largest_context:,} tokens" if fit.largest_context else "none",
        }
    )
