"""Conversions, evaluations and memory needs are tables of all their figures."""

from __future__ import annotations

import dataclasses

from shown import Page, summary

from exaone4_mlx import Evaluation, Fit, fit
from exaone4_mlx.conversion.evaluation import EvaluationRow
from exaone4_mlx.conversion.verify import TensorError
from exaone4_mlx.notebook.report_view import evaluation_html, fit_html, summary_html


def test_a_summary_is_a_table() -> None:
    errors = (TensorError("model.a", 0.1, 20.0), TensorError("model.b", 0.25, 12.0))
    row = EvaluationRow("all", 9, 99, 0.012345, 0.5, 0.987, 3.21, 3.2, 1.0123, 1.01, 1.02)
    evaluation = Evaluation(
        **{field.name: 1 for field in dataclasses.fields(Evaluation)} | {"model": "1", "reference": "1", "rows": (row,)}
    )
    shown = summary(errors=errors, evaluation=evaluation, notes=("<b>mind this",), page="https://example.com/x")
    page = Page(summary_html(shown))
    for part in ("1 MB from 4 MB (4.0 times smaller)", "4.500", "1,234", "2 tensors; the largest error is 25.0 %"):
        assert part in page.text
    for part in ("0.01235", "98.70 %", "1.0123", "<b>mind this", "https://example.com/x"):
        assert part in page.text
    assert ("b",) not in page.tags
    assert evaluation_html(evaluation) in summary_html(shown)
    assert (
        repr(evaluation) == "Evaluation('1' against '1': mean KL 0.01235 nats, same top-1 98.70 %, 1 texts of 1 tokens)"
    )
    summary_html(summary(bytes=0))


def test_a_fit_is_a_table_of_all_its_figures() -> None:
    found = fit("demo", memory=0.001)
    text = Page(fit_html(found)).text
    assert "fits into 1 MB" in text and "no" in text and "none" in text and "8,192 tokens" in text
    assert "local windows98 kB" in text, "less than a megabyte is not nothing"
    names = [field.name for field in dataclasses.fields(Fit) if field.name.endswith("_bytes")]
    sizes = {name: (number + 2) * 10**6 for number, name in enumerate(names)}
    table = Page(fit_html(dataclasses.replace(found, **sizes))).text
    assert all(f"{size // 10**6} MB" in table for size in sizes.values()), "a figure of Fit is not in the table"
    several = Page(fit_html(fit("demo", batch_size=3, prompt_cache_bytes=5_000_000))).text
    assert "conversations3" in several and "earlier prompts5 MB" in several
