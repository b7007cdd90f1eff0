"""Templates come with checkpoints, from anyone: what goes wrong in one is an error, in time, and nothing more."""

from __future__ import annotations

import time
from typing import Any

import pytest

from exaone4_mlx.text.template import DEADLINE_SECONDS, ChatTemplate


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source, "chat_template.jinja").render(messages=[{"role": "user", "content": "x"}], **variables)


def test_environment_is_that_of_transformers() -> None:
    assert (
        render("{% for i in [1, 2, 3] %}\n  {% if i == 2 %}\n    {% continue %}\n  {% endif %}\n{{ i }}\n{% endfor %}")
        == "1\n3\n"
    )
    assert render("{{ ['<한>'] | tojson }}{{ {'a': 'é'} | tojson(ensure_ascii=True) }}") == '["<한>"]{"a": "\\u00e9"}'
    assert render("{{ 'a' ~ (1 + 2) }}|{{ 'abc' | replace('b', 'x') }}|{{ messages[0].missing }}") == "a3|axc|"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "the chat template fails: TemplateSyntaxError"),
        ("{{ messages[0].a.b }}", "the chat template fails: UndefinedError"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ ''.__class__ }}", "attribute '__class__' of a str is not allowed"),
        ("{{ messages.__init__.__globals__ }}", "attribute '__init__' of a list is not allowed"),
        ("{{ messages.append(1) }}", "attribute 'append' of a list is not allowed"),
        ("{{ 'a' * 10 ** 11 }}", "was stopped"),
        ("{{ 10 ** 10 ** 10 }}", "the power .* is too large"),
        ("{{ ['a'] * 100 }}", "a repetition this large"),
        ("{{ 'a'.ljust(10 ** 9) }}", "is not allowed"),
        ("{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}", "texts this long"),
        ("{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}", "texts this long"),
        ("{{ 'a' | center(10 ** 9) }}", "No filter named 'center'"),
        ("{{ '%999999999d' % 1 }}", "text formatting with %"),
        ("{{ [1] | tojson(indent=10 ** 6) }}", "an indent of"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "more than .* characters"),
    ],
)  # fmt: skip
def test_broken_and_hostile_templates_end_in_an_error(source: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=message):
        render(source)
    assert time.monotonic() - started < DEADLINE_SECONDS, "refused at once, not by the deadline"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}",
    ],
    ids=["silent", "printing"],
)
def test_endless_loops_end_at_the_deadline(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exaone4_mlx.text.template.DEADLINE_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"did not end within 0\.2 s"):
        render(source)
