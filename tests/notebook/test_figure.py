"""Figures follow the colours of the page and say what they show."""

from __future__ import annotations

from typing import Any

import pytest

from exaone4_mlx.notebook import draw_figure


@pytest.fixture
def figure() -> Any:
    pytest.importorskip("matplotlib", reason="plots need the extra `notebook`").use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    axis.semilogy([1, 10], "o-", color="#0072B2", label="서울")
    axis.axhline(2, color="black")
    axis.legend()
    return figure


def test_a_figure_has_the_colours_of_the_page_and_a_text(figure: Any) -> None:
    import matplotlib.pyplot as plt

    view = draw_figure(figure, 'Loss "falls" <quickly>.')
    html = view._repr_html_()
    assert 'role="img" aria-label="Loss &quot;falls&quot; &lt;quickly&gt;."' in html
    assert "currentColor" in html and "#0072b2" in html
    for wrong in ("#000000", "#ffffff", "<style", "<metadata", "DejaVu", "mathdefault"):
        assert wrong not in html, f"{wrong} is not for a page of any theme"
    assert ">서울</text>" in html, "labels are text in the font of the page"
    assert not plt.fignum_exists(figure.number), "a notebook would show it a second time"
    assert repr(view) == "FigureView(alt='Loss \"falls\" <quickly>.')"


def test_a_figure_needs_a_text(figure: Any) -> None:
    with pytest.raises(ValueError, match="alt must say what the figure shows"):
        draw_figure(figure, " ")
