"""What happens now, as one line."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from app.i18n import LANGUAGES, Words
from app.status import notes, status_html
from app.work import View
from exaone4_mlx import Done

EN = Words("en")
COUNTS = Done("stop", 512, 480, 20, 30, 0.1, 2.0, 0.8, 10)
REST = View([], counts=COUNTS, first_token_seconds=0.42, context_tokens=562, context_limit=8192)


def html_of(view: View) -> str:
    return status_html(view, EN, "demo", 12_000_000)


def line_of(view: View) -> str:
    """What is shown without a click."""
    [line] = re.findall("<summary.*?>(.*)</summary>", html_of(view))
    return " ".join(re.sub("<.*?>", " ", line).split())


def test_the_line_is_in_plain_words_and_its_details_are_behind_it() -> None:
    assert line_of(REST) == "25.0 tokens/s 7% of the context used"
    assert "25.0토큰/초" in status_html(REST, Words("ko"), "demo", 0)
    silent = dataclasses.replace(COUNTS, thinking_tokens=0, answer_tokens=0)
    assert line_of(dataclasses.replace(REST, counts=silent)) == "7% of the context used", "no token, no speed"
    assert line_of(View([], context_limit=8192)) == "0% of the context used"
    assert line_of(View([], context_limit=8192, context_tokens=3)) == "1% of the context used", "it is not empty"


def test_finished_reply_tells_its_counts() -> None:
    for part in ("50 tokens", "25.0 tokens/s", "first after 0.42 s", "prompt 512 (480 reused)", "memory 12 MB", "demo"):
        assert part in html_of(REST)
    assert "drafted" not in html_of(REST)
    drafted = dataclasses.replace(COUNTS, drafted_tokens=1200, accepted_tokens=31)
    assert "31 of 1,200 drafted accepted" in html_of(dataclasses.replace(REST, counts=drafted))
    assert 'value="562"' in html_of(REST) and "562 of 8,192 tokens" in html_of(REST)


def test_warnings_of_a_model_are_in_the_language_of_the_tab() -> None:
    assert notes(["the tokenizer knows too much"], EN) == ["Note: the tokenizer knows too much."]
    assert notes(["one", "two"], Words("ko")) == ["참고: one.", "참고: two."]


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        ({"place": 2}, "Waiting: 2 before you"),
        ({"reading": (512, 4096), "reading_left": 3.4}, "Reading the prompt: 512 of 4,096 tokens · 3.4 s left"),
        ({"tool_runs": True}, "A tool is running"),
        ({"first_token_seconds": None}, "Starting…"),
    ],
)
def test_each_phase_of_a_reply_has_its_words(phase: dict[str, Any], text: str) -> None:
    assert text in line_of(dataclasses.replace(REST, running=True, **phase))


def test_nearly_full_context_is_warned_of_and_what_happens_there_is_explained() -> None:
    assert "nearly full" not in html_of(REST)
    assert "oldest turns are no longer seen" in html_of(dataclasses.replace(REST, context_tokens=7000))
    assert "no longer sees the first 4 messages" in html_of(dataclasses.replace(REST, dropped=4))


def test_conversation_that_could_not_be_written_says_so() -> None:
    assert "could not be saved: disk full" in html_of(dataclasses.replace(REST, unsaved="disk full"))


def test_two_warnings_are_two() -> None:
    html = html_of(dataclasses.replace(REST, unsaved="disk full", dropped=4))
    assert html.count('class="warning"') == 2


def test_error_of_the_disk_is_no_html() -> None:
    assert "<b>" not in html_of(dataclasses.replace(REST, unsaved="no folder <b>"))


def test_without_a_reply_there_are_no_counts_and_without_a_limit_no_meter() -> None:
    html = html_of(View([]))
    assert "tokens" not in html and "<meter" not in html and "memory 12 MB" in html and "demo" in html


def test_reply_of_which_nothing_came_has_no_speed() -> None:
    html = html_of(dataclasses.replace(REST, counts=dataclasses.replace(COUNTS, thinking_tokens=0, answer_tokens=0)))
    assert "tokens/s" not in html and "0 tokens" in html


def test_a_finished_reply_shows_its_counts() -> None:
    html = html_of(dataclasses.replace(REST, running=False, place=2, reading=(1, 2), tool_runs=True))
    assert "25.0 tokens/s" in html and "Waiting" not in html


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phase_has_a_text_in_every_language(language: str) -> None:
    words = Words(language)
    for phase in ({}, {"place": 2}, {"reading": (1, 2), "reading_left": 3.0}, {"tool_runs": True}, {"counts": None}):
        html = status_html(dataclasses.replace(REST, running=True, dropped=2, unsaved="x", **phase), words, "demo", 1)
        assert "{" not in html and words("context") in html


def test_nothing_that_a_model_is_called_is_html() -> None:
    assert "<img" not in status_html(REST, EN, "<img src=x onerror=alert(1)>", 1)
