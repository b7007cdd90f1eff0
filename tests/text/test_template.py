"""Chat templates are untrusted: every failure of one is an error, and it comes in time."""

from __future__ import annotations

import re
from typing import Any

import pytest

from exaone4_mlx.text.template import ChatTemplate


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source, "chat_template.jinja").render(variables, messages=[{"role": "user", "content": "x"}])


def test_the_environment_is_that_of_transformers() -> None:
    assert (
        render("{% for i in [1, 2, 3] %}\n  {% if i == 2 %}\n    {% continue %}\n  {% endif %}\n{{ i }}\n{% endfor %}")
        == "1\n3\n"
    )
    assert render("{{ ['<한>'] | tojson }}{{ {'a': 'é'} | tojson(ensure_ascii=True) }}") == '["<한>"]{"a": "\\u00e9"}'
    assert render("{{ 'a' ~ (1 + 2) }}|{{ 'abc' | replace('b', 'x') }}|{{ messages[0].missing }}") == "a3|axc|"


GROW = "{% set n = namespace(x='a', y='a') %}{% for i in range(60) %}"


BROKEN = [
    ("{% if %}", "the chat template fails: TemplateSyntaxError"),
    ("{{ messages[0].a.b }}", "the chat template fails: UndefinedError"),
    ("{{ raise_exception('roles must alternate') }}", "refuses this: roles must alternate"),
    ("{{ ''.__class__ }}", "attribute '__class__' of a str is not allowed"),
    ("{{ messages.__init__.__globals__ }}", "attribute '__init__' of a list is not allowed"),
    ("{{ messages.append(1) }}", "attribute 'append' of a list is not allowed"),
    ("{{ cycler }}{{ lipsum(9) }}", "'lipsum' is undefined"),
    ("{{ 'a' * 10 ** 11 }}", "was stopped"),
    ("{{ 10 ** 10 ** 10 }}", "a power this large"),
    ("{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}", "a product this large"),
    ("{{ ['a'] * 100 }}", "a repetition this large"),
    ("{{ 'a'.ljust(10 ** 9) }}", "the method 'ljust' of a str is not allowed"),
    ("{{ '{:>2000000000}'.format('x') }}", "the method 'format' of a str is not allowed"),
    ("{{ 'a'.encode() }}", "the method 'encode' of a str is not allowed"),
    ("{{ 'a'.translate({97: 'b' * 1000000}) }}", "the method 'translate' of a str is not allowed"),
    ("{{ ('a' * 100000).replace('a', 'b' * 100000) }}", "a text this long"),
    ("{{ ('a' * 100000) | replace('a', 'b' * 100000) }}", "a text this long"),
    ("{{ range(100000) | join('a' * 10000) }}", "a text this long"),
    ("{{ ('a' * 10000).join(range(10000) | map('string') | list) }}", "a text this long"),
    ("{{ 'a' | center(10 ** 9) }}", "No filter named 'center'"),
    ("{{ 1 | round(60000000, 'floor') }}", "No filter named 'round'"),
    ("{{ '%999999999d' % 1 }}", "formatting with %"),
    ("{{ [1] | tojson(indent=10 ** 6) }}", "an indent of"),
    ("{{ [1] | tojson(separators=('a' * 1000, 'b')) }}", "unexpected keyword argument"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    (GROW + "{% set n.x = n.x ~ n.x %}{% endfor %}", "more than .* characters"),
    (GROW + "{% set n.x = n.x + n.x %}{% endfor %}", "more than .* characters"),
    (GROW + "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}", "more than|did not end"),
    (GROW + "{% set n.x = (n.x, n.x) %}{% endfor %}{{ {n.x: 1} }}", "more than|did not end"),
    (GROW + "{% set n.x = (n.x, n.x) %}{% endfor %}{{ {1: 1}[n.x] }}", "more than|did not end"),
    (GROW + "{% set n.x = (n.x, n.x) %}{% endfor %}{{ n.x in {1: 1} }}", "more than|did not end"),
    (GROW + "{% set n.x = (n.x, n.x) %}{% endfor %}{{ {1: 1}.get(n.x) }}", "more than|did not end"),
]  # fmt: skip


def test_broken_and_hostile_templates_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exaone4_mlx.text.template.DEADLINE_SECONDS", 0.2)
    for source, message in BROKEN:
        with pytest.raises(ValueError) as caught:
            render(source)
        assert re.search(message, str(caught.value)), f"{source}: {caught.value}"


def test_unknown_options_are_refused() -> None:
    assert render("{% if not shout is defined %}{% set shout = true %}{% endif %}{{ shout }}", shout=1) == "1"
    with pytest.raises(ValueError, match="the chat template refuses this: it has no option shuot"):
        render("{{ shout }}", shuot=1)


def test_endless_loops_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exaone4_mlx.text.template.DEADLINE_SECONDS", 0.2)
    silent = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    printing = "{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}"
    for source in (silent, printing):
        with pytest.raises(ValueError, match=r"did not end within 0\.2 s"):
            render(source)
