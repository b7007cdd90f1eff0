"""Chat templates are untrusted: every failure of one is an error, and it comes in time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import jinja2
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
    ("{{ 9 ** 99999 }}", "a power this large"),
    ("{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}", "a product this large"),
    ("{{ ['a'] * 100 }}", "a repetition of this"),
    ("{{ 'a'.ljust(10 ** 9) }}", "the method 'ljust' of a str is not allowed"),
    ("{{ '{:>2000000000}'.format('x') }}", "the method 'format' of a str is not allowed"),
    ("{{ 'a'.encode() }}", "the method 'encode' of a str is not allowed"),
    ("{{ 'a'.translate({97: 'b' * 1000}) }}", "the method 'translate' of a str is not allowed"),
    ("{{ ('a' * 100000).replace('a', 'b' * 100000) }}", "more than 32 MB"),
    ("{{ ('a' * 100000) | replace('a', 'b' * 100000) }}", "more than 32 MB"),
    ("{{ range(100000) | join('a' * 10000) }}", "more than 32 MB"),
    ("{{ ('a' * 10000).join(range(10000) | map('string') | list) }}", "more than 32 MB"),
    ("{{ 'a' | center(10 ** 9) }}", "No filter named 'center'"),
    ("{{ 1 | round(60000000, 'floor') }}", "No filter named 'round'"),
    ("{{ '%999999999d' % 1 }}", "formatting with %"),
    ("{{ [1] | tojson(indent=10 ** 6) }}", "an indent of"),
    ("{{ [1] | tojson(separators=('a' * 1000, 'b')) }}", "unexpected keyword argument"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    (GROW + "{% set n.x = n.x ~ n.x %}{% endfor %}", "more than 32 MB"),
    (GROW + "{% set n.x = n.x + n.x %}{% endfor %}", "more than 32 MB"),
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
    with pytest.raises(ValueError, match=r"did not end within 0\.2 s"):
        render(silent)


REAL = """
{%- macro box(role, body) %}[|{{ role }}|]{{ body }}{{ caller() if caller }}{% endmacro -%}
{%- set ns = namespace(last=-1, text='') -%}
{%- for m in messages[::-1] if m.role == 'user' and not m.content.startswith('<t>') -%}
    {%- if ns.last < 0 %}{% set ns.last = messages | length - loop.index0 - 1 %}{% endif -%}
    {%- set ns.text = ns.text ~ loop.index ~ '/' ~ loop.length ~ (',' if not loop.last) -%}
{%- endfor -%}
{{ ns.last }} {{ ns.text }} {{ messages | map(attribute='role') | join('+') }} {{ nothing }}{{ None }} {{ 7 // 2 }} {{ -7 % 3 }}
{% for m in messages %}{% call box(m.role, m['content'] | trim) %}!{{ loop.previtem.role if loop.previtem }}{% endcall %}{% else %}none{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | list | tojson(ensure_ascii=False) }} {{ 'user' in messages | map(attribute='role') }}
{{ 'x' if messages | selectattr('role', 'equalto', 'nobody') }} {{ messages[0].content.split('b', 1)[-1] }} {{ messages[0].content[1:-1:2] }}
{{ {'k': [1, 2.5, true, none]} }} {{ {'a': 1}.items() | list }} {{ [1] + [2] }} {{ (1, 2) + (3,) }} {{ 2 ** 10 }} {{ 'ab' * 2 }} {{ '%x' }}
{% for k, v in messages[0].items() %}{{ k }}={{ v | replace('a', 'b') | upper }};{% endfor %} {{ [3, 1] | first }} {{ 'abc' | reverse | last }}
{% for i in [[1, [2]], [3]] recursive %}{{ loop(i) if i is iterable else i }}.{{ loop.depth }}{% endfor %} {{ '<' | e }} {{ '<' | e + '<' }}
{% set block %}a{{ 1 }}{% endset %}{{ block ~ block | title }} {% filter upper %}b{{ 2 }}{% endfilter %} {{ loop is defined }} {{ range(3) | list }}
{{ dict(a=1).a }} {{ '12' | int + 1 }} {{ 'x' | int(9) }} {{ [1, 2] is sequence }} {{ 3 is odd }} {{ {'b': 1} | tojson(indent=2) }} {{ [none] | map('default', 'd', true) | list }}
"""


def test_the_text_is_that_of_jinja2_without_our_limits() -> None:
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    plain.filters["tojson"] = lambda value, ensure_ascii=False, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    messages = [{"role": role, "content": f" {role} b <t> 한글 "} for role in ("system", "user", "assistant", "user")]
    for count in range(1, 5):
        ours = ChatTemplate(REAL, "t").render({}, messages=messages[:count])
        assert ours == plain.from_string(REAL).render(messages=messages[:count]).removesuffix("\n")


BIG = "{% set b = '한' * 1000000 %}"
LOOP, END = "{% for i in range(99999) %}{% for j in range(99999) %}", "{% endfor %}{% endfor %}"
TREE = (
    "{% set n = namespace(t=('ab',), u=('ab',), l=[]) %}{% for i in range(DEEP) %}{% set n.t, n.u = PAIR %}{% endfor %}"
)
WIDE = TREE.replace("DEEP", "40").replace("PAIR", "(n.t, n.t), (n.u, n.u)")
DEEP = TREE.replace("DEEP", "50000").replace("PAIR", "(n.t,), (n.u,)")
BOMBS = [
    *(LOOP + body + END for body in ("{{ 'a' * 100000 }}", "x" * 99999, "{% set x %}{{ 'a' * 99999 }}{% endset %}", "")),
    *(BIG + "{% set x = " + " ~ ".join([part] * 3000) + " %}" for part in ("b", "b[1:]", "b | upper", "b.split()")),
    *(BIG + f"{{% set x = [{', '.join([part] * 3000)}] %}}" for part in ("b[1:]", "b | title", "b | list", "b.lower()")),
    *(f"{{% set x = {number} %}}{{{{ {use} }}}}" for number in ("7 ** 5000", "('f' * 9000000) | int(0, 16)", "0x" + "f" * 99999)
      for use in ("x", "x // 3", "x * x", "x ** x", "x % 7", "-x", "'a' * x", "x is divisibleby(x - 1)")),
    *(tree + use for tree in (WIDE, DEEP) for use in (
        "{{ n }}", "{{ n.t }}", "{{ n.t == n.u }}", "{{ {n.t: 1} }}", "{{ [n.t] | tojson }}", "{{ 'a' ~ n.t }}", "{{ {1: n.t}.values() }}",
        "{{ n.u in [n.t] | map('list') }}", "{{ [n.t].index(n.u) }}", "{{ raise_exception(n.t) }}", "{{ messages[0][n.t] }}", "{{ dict([(n.t, 1)]) }}")),
    *(f"{{% set s = 'a' * 3000000 %}}{{{{ {use} }}}}" for use in (
        "s.rfind('ab' ~ 'a' * 1000000)", "s.rsplit('ab' ~ 'a' * 1000000)", "s.rpartition('ab' ~ 'a' * 1000000)", "s.strip('b' * 1000000 ~ 'a')", "s | trim('b' * 1000000 ~ 'a')")),
    "{% set n = namespace(l=[]) %}" + LOOP + "{% set n.l = [n.l, [" + "i + j, " * 9000 + "]] %}" + END,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call f() %}" * 17 + "x" * 9999 + "{% endcall %}" * 17,
    "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% macro f() %}{{ varargs }}{% endmacro %}{{ f(*('a' * 9000000)) }}",
    "{% set n = namespace(l=range(30000) | list) %}{% for i in range(300) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l | tojson(indent=16) }}",
    "".join(f"{{% if a %}}{{% set v{i} = 1 %}}{{% endif %}}" for i in range(5000)),
    "{{ (1).to_bytes(99999999, 'big') }}", "{{ dict.fromkeys(range(99999), 1) }}", "{% autoescape true %}{% endautoescape %}", "x" * 200_001,
]  # fmt: skip

CHILD = """
import json, pathlib, resource, sys, time
from exaone4_mlx.text import template
status = pathlib.Path("/proc/self/status")
def resident():
    if status.exists():  # Linux counts the peak of the parent process in ru_maxrss, too
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
template.DEADLINE_SECONDS = float(sys.argv[1])
start = resident()
for source in json.load(sys.stdin):
    begun, result = time.thread_time(), "text"
    try:
        template.ChatTemplate(source, "t").render({}, messages=[{"role": "user", "content": "x" * int(sys.argv[2])}])
    except ValueError as error:
        result = str(error)
    print(json.dumps([result, time.thread_time() - begun, (resident() - start) / 2**20]))
"""


def bombs_of(sources: list[str], seconds: float, letters: int = 1) -> list[tuple[str, float, float]]:
    """(result, CPU seconds, peak of the process in MiB) of each source, for a message of so many letters."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(seconds), str(letters)],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in ended.stdout.splitlines()]


@pytest.mark.heavy
def test_bombs_end_in_time_and_memory() -> None:
    for source, (result, seconds, peak) in zip(BOMBS, bombs_of(BOMBS, 0.5), strict=True):
        assert "Error" in result or "did not end" in result or result == "text", f"{source[:200]}: {result}"
        assert seconds < 2 and peak < 256, f"{source[:200]}: {result}, {seconds:.1f} s, {peak:.0f} MiB"


def test_no_operation_of_a_template_passes_the_limits() -> None:
    sources = [LOOP + "{{ 'a' * 100000 }}" + END, BIG + "{% set x = " + " ~ ".join(["b"] * 3000) + " %}"]
    sources += [
        "{% set x = ('f' * 9000000) | int(0, 16) %}{{ x // 3 }}",
        WIDE + "{{ n }}",
        WIDE + "{{ {1: n.t}.values() }}",
    ]
    sources += [DEEP + "{{ {n.t: 1} }}", "{{ ('a' * 3000000).rfind('ab' ~ 'a' * 1000000) }}"]
    for source, (result, seconds, peak) in zip(sources, bombs_of(sources, 0.2), strict=True):
        assert "was stopped" in result or "did not end" in result, f"{source[:200]}: {result}"
        assert seconds < 2 and peak < 256, f"{source[:200]}: {result}, {seconds:.1f} s, {peak:.0f} MiB"


def test_a_value_too_large_to_be_measured_is_too_large_for_a_long_prompt() -> None:
    """A prompt of 200,000 letters may make more text than one operation may read, where measuring ends."""
    ((result, *_),) = bombs_of([WIDE + "{{ n.t | trim }}"], 0.2, letters=200_000)
    assert "was stopped: SecurityError: it makes more than" in result
