"""Constrained tool calls: each sampled call is valid, and only valid calls can be sampled."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import pytest
from conftest import in_a_thread, tiny_model

from exaone4_mlx import Tokenizer
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.generation import constrain
from exaone4_mlx.generation.constrain import ToolConstraint
from exaone4_mlx.text.calls import read_calls
from exaone4_mlx.tools.schema import normalized

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

Draw = Callable[[mx.array, Sequence[int]], int]
LIMIT = 250  # tokens of a call; a longer one is cut off and not checked


def tool(name: str, properties: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A tool whose parameters are all required unless `more` says otherwise."""
    properties = properties or {}
    return {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": properties, "required": list(properties), **more},
        },
    }


def constraint(tokenizer: Tokenizer, *tools: Mapping[str, Any], vocab_size: int = 0) -> ToolConstraint:
    return ToolConstraint(tokenizer, tools, vocab_size or tokenizer.vocab_size)


def allowed_ids(held: ToolConstraint) -> set[int]:
    return {id for id, may in enumerate(held.allowed().tolist()) if may}


def write(held: ToolConstraint, tokenizer: Tokenizer, text: str) -> None:
    """Advances by the tokens of `text`."""
    for id in tokenizer.encode(text):
        held.advance(id)


def accepts(held: ToolConstraint, tokenizer: Tokenizer, call: Any) -> bool:
    """Whether the whole call, as json.dumps writes it, can be sampled."""
    held.begin()
    try:
        write(held, tokenizer, call if isinstance(call, str) else json.dumps(call, ensure_ascii=False))
        held.advance(held.end_id)
    except ValueError:
        return False
    return not held.active


# --- random calls -------------------------------------------------------------


def random_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.choice(["string", "text", "integer", "number", "boolean", "enum", "array", "object", "null", "any"])
    if depth == 0 and kind in ("array", "object", "any"):
        kind = "string"
    if kind == "string":
        return rng.choice([{"type": "str", "maxLength": 9}, {"type": "string", "pattern": "^[가-힣]{1,5}$"}])
    if kind == "text":
        return {"type": "string"}
    if kind == "integer":
        return rng.choice([{"type": "int"}, {"type": "integer", "minimum": -3, "exclusiveMaximum": 1200}])
    if kind == "number":
        return rng.choice([{"type": "float"}, {"type": "number", "minimum": 0, "maximum": 1}])
    if kind == "enum":
        return {"enum": rng.sample(["a", "서울", 'say "hi"\n', 7, None, True, "</tool_call>"], 3)}
    if kind == "array":
        return {"type": "list", "items": random_schema(rng, depth - 1), "minItems": rng.randrange(2), "maxItems": 3}
    if kind == "object":
        return random_object(rng, depth - 1)
    if kind == "null":
        return {"type": ["boolean", "null"]}
    return {"anyOf": [random_schema(rng, depth - 1), random_schema(rng, depth - 1)]}


def random_object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["city", "도시", "unit", "n", "a b", 'quo"te', "name", "arguments"], rng.randrange(4))
    properties = {name: random_schema(rng, depth) for name in names}
    return {"type": "dict", "properties": properties, "required": [name for name in names if rng.random() < 0.6]}


def random_tools(rng: random.Random) -> list[dict[str, Any]]:
    names = rng.sample(["get_weather", "get_weather_now", "날씨", "f", 'odd "name"'], rng.randrange(1, 4))
    return [{"name": name, "parameters": random_object(rng, 2)} for name in names]


def sampled_call(held: ToolConstraint, draw: Draw) -> list[int] | None:
    """The ids of one call without its tags; None for a call that is cut off."""
    held.begin()
    ids: list[int] = []
    while held.active and len(ids) < LIMIT:
        ids.append(draw(held.allowed(), ids))
        held.advance(ids[-1])
    return None if held.active else ids[:-1]


def uniform(seed: int) -> Draw:
    """Samples all allowed tokens with equal probability."""
    keys = iter(mx.random.split(mx.random.key(seed), 100 * LIMIT))

    def draw(allowed: mx.array, _: Sequence[int]) -> int:
        return int(mx.argmax(mx.where(allowed, mx.random.uniform(shape=allowed.shape, key=next(keys)), -1.0)).item())

    return draw


def check_call(text: str, tools: Sequence[Mapping[str, Any]]) -> None:
    calls, problem = read_calls(text)
    if re.search(r"\d[eE]\+?\d{3}", text) and problem:
        return  # the grammar admits a number that is too large for a float, and such a call is refused
    assert len(calls) == 1, (problem, text)
    schemas = {tool["name"]: tool["parameters"] for tool in tools}
    assert calls[0].name in schemas, text
    schema = normalized(schemas[calls[0].name])
    errors = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(calls[0].arguments)]
    assert not errors, (errors, text)
    assert calls[0].arguments.keys() <= schema["properties"].keys(), f"an unknown argument: {text}"


def check_random_calls(
    tokenizer: Tokenizer, draw: Draw, made: Callable[..., Any] = ToolConstraint, sets: int = 25
) -> None:
    """Samples three calls for each set of random tools. Complete calls must be valid."""
    rng = random.Random(11)
    ended = 0
    for _ in range(sets):
        tools = random_tools(rng)
        held = made(tokenizer, tools, tokenizer.vocab_size)
        for _ in range(3):
            if (ids := sampled_call(held, draw)) is not None:
                check_call(tokenizer.decode(ids), tools)
                ended += 1
    assert ended >= 3 * sets // 2, f"only {ended} of {3 * sets} calls are complete, which is too few"


@pytest.mark.heavy
def test_random_calls_follow_their_schemas(tokenizer: Tokenizer) -> None:
    check_random_calls(tokenizer, uniform(1))


@pytest.mark.heavy
def test_random_calls_in_exaones_own_tokens_follow_their_schemas(real: Tokenizer) -> None:
    check_random_calls(real, uniform(2), sets=10)


@pytest.mark.heavy
def test_calls_of_a_random_model_follow_their_schemas(tokenizer: Tokenizer) -> None:
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    noise = iter(mx.random.split(mx.random.key(3), 20_000))
    cache: list[Any] = []

    def draw(allowed: mx.array, ids: Sequence[int]) -> int:
        if not ids:
            cache[:] = model.make_cache()
        logits = model(mx.array([[ids[-1] if ids else 15]]), cache=cache)[0, -1] / 10
        return int(mx.random.categorical(mx.where(allowed, logits, -mx.inf), key=next(noise)).item())

    check_random_calls(tokenizer, draw, sets=4)


class Unconstrained:
    """A constraint without a mask: any token is allowed, and the call ends after 20 tokens."""

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]], vocab_size: int) -> None:
        self._held = ToolConstraint(tokenizer, tools, vocab_size)
        self._drawn = 0
        self.active = False

    def begin(self) -> None:
        self._drawn, self.active = 0, True

    def allowed(self) -> mx.array:
        return mx.ones((self._held._vocab_size,), dtype=mx.bool_)

    def advance(self, token: int) -> None:
        self._drawn += 1
        self.active = self._drawn < 20


def test_unconstrained_calls_fail_the_check(tokenizer: Tokenizer) -> None:
    with pytest.raises(AssertionError, match="not JSON"):
        check_random_calls(tokenizer, uniform(1), Unconstrained)


# --- which tokens -------------------------------------------------------------


@pytest.mark.parametrize("which", ["tokenizer", "real"])
def test_no_control_token_is_allowed_before_the_json_is_complete(which: str, request: pytest.FixtureRequest) -> None:
    """After it only </tool_call>. EXAONE's think and tool tags are not "special" for other software."""
    tokenizer: Tokenizer = request.getfixturevalue(which)
    held = constraint(tokenizer, tool("f", {"x": {"type": "string"}, "n": {"type": "integer"}}))
    control = {id for text in tokenizer.control_tokens for id in tokenizer.encode(text)} | tokenizer.stop_token_ids
    assert {held.start_id, held.end_id} < control
    held.begin()
    for id in tokenizer.encode('{"name": "f", "arguments": {"x": "a <b \\" 안녕", "n": 12}}'):
        assert not allowed_ids(held) & control, f"before {tokenizer.decode([id])!r}"
        held.advance(id)
    assert allowed_ids(held) == {held.end_id}


def test_a_stop_token_that_is_ordinary_text_is_not_allowed(tokenizer: Tokenizer) -> None:
    """generation_config.json may name any token."""
    stop = tokenizer.encode(" of")[0]
    stopping = Tokenizer(tokenizer._backend, {}, None, [stop])
    # Without its token, " of" needs three tokens.
    for ours, name, may in ((tokenizer, ["out of"], True), (stopping, ["out", " ", "o", "f"], False)):
        held = constraint(ours, tool("out of", {"x": {"type": "string"}}))
        held.begin()
        for text in ('{"name": "' + name[0], *name[1:], '", "arguments": {"x": "'):
            write(held, ours, text)
        assert (stop in allowed_ids(held)) is may


def test_ids_beyond_the_tokenizers_vocabulary_are_never_allowed(tokenizer: Tokenizer) -> None:
    """A model's vocabulary may be padded beyond its tokenizer's."""
    held = constraint(tokenizer, tool("f", {"x": {"type": "string"}}), vocab_size=tokenizer.vocab_size + 100)
    held.begin()
    write(held, tokenizer, '{"name": "f", "arguments": {"x": "')
    assert held.allowed().shape == (tokenizer.vocab_size + 100,)
    assert max(allowed_ids(held)) < tokenizer.vocab_size
    for id in (tokenizer.vocab_size, -1, 10**9):
        with pytest.raises(ValueError, match="was not allowed"):
            held.advance(id)


def test_a_model_with_fewer_ids_can_complete_a_call(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, tool("날씨", {"x": {"enum": ["서울"]}}), vocab_size=300)
    ids = sampled_call(held, uniform(5))
    assert ids is not None and max(ids) < 300
    assert tokenizer.decode(ids) == '{"name": "날씨", "arguments": {"x": "서울"}}'


def test_text_without_an_alternative_has_the_tokenizers_tokens(tokenizer: Tokenizer) -> None:
    """Single letters would be valid JSON, too, but the model was not trained on them."""
    held = constraint(tokenizer, tool("get_weather", {"도시": {"enum": ["서울"]}}))
    whole = tokenizer.encode('{"name": "get_weather", "arguments": {"도시": "서울"}}')
    held.begin()
    for id in whole:
        assert allowed_ids(held) == {id}
        held.advance(id)


def test_control_strings_of_a_schema_are_written_as_ordinary_text(tokenizer: Tokenizer) -> None:
    control = sorted(tokenizer.control_tokens)
    held = constraint(tokenizer, tool("<think>", {"x": {"enum": control}}))
    for seed in range(5):
        ids = sampled_call(held, uniform(seed))
        assert ids is not None
        assert not any(tokenizer.decode([id]) in tokenizer.control_tokens for id in ids)
        assert read_calls(tokenizer.decode(ids))[0][0].arguments["x"] in control


# --- which calls --------------------------------------------------------------


def test_korean_and_emoji_can_be_written(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, tool("f", {"x": {"type": "string"}}))
    assert accepts(held, tokenizer, {"name": "f", "arguments": {"x": "안녕하세요, 뷁! 👩‍👩‍👧 ¿Qué?"}})


@pytest.mark.parametrize(
    "call",
    [
        '{"name":"f","arguments":{"x":1}}',
        '{"name": "f", "arguments":  {"x": 1}}',
        ' {"name": "f", "arguments": {"x": 1}}',
        '{"arguments": {"x": 1}, "name": "f"}',
        '{"name": "f", "parameters": {"x": 1}}',
        '{"name": "f", "arguments": {"x": "1"}}',
        '{"name": "f", "arguments": {"x": 1, "y": 2}}',
        '{"name": "f", "arguments": {}}',
        '{"name": "f", "arguments": 1}',
        '{"name": "g", "arguments": {"x": 1}}',
        '{"name": "f"}',
        '[{"name": "f", "arguments": {"x": 1}}]',
    ],
)
def test_only_the_form_of_the_prompt_is_allowed(tokenizer: Tokenizer, call: str) -> None:
    held = constraint(tokenizer, tool("f", {"x": {"type": "integer"}}))
    assert accepts(held, tokenizer, '{"name": "f", "arguments": {"x": 1}}'), "the spacing of json.dumps"
    assert not accepts(held, tokenizer, call)


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_tool_without_parameters_has_empty_arguments(tokenizer: Tokenizer, parameters: Any) -> None:
    held = constraint(tokenizer, {"name": "now", "parameters": parameters} if parameters else {"name": "now"})
    held.begin()
    write(held, tokenizer, '{"name": "now", "arguments": {}}')
    assert allowed_ids(held) == {held.end_id}
    assert not accepts(held, tokenizer, {"name": "now", "arguments": {"x": 1}})


def test_objects_are_closed_at_every_depth_unless_their_schema_says_otherwise(tokenizer: Tokenizer) -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    schema = {"x": inner, "y": {"type": "array", "items": inner}, "z": {**inner, "additionalProperties": True}}
    held = constraint(tokenizer, tool("f", schema, required=[]))
    for arguments, may in (
        ({"x": {"a": 1}, "y": [{"a": 1}], "z": {"a": 1, "b": 1}}, True),
        ({"x": {"a": 1, "b": 1}}, False),
        ({"y": [{"b": 1}]}, False),
        ({"b": 1}, False),
    ):
        assert accepts(held, tokenizer, {"name": "f", "arguments": arguments}) is may, arguments


def test_an_object_without_listed_properties_allows_any(tokenizer: Tokenizer) -> None:
    """As a `dict` parameter of a Python function."""
    held = constraint(tokenizer, tool("f", {"x": {"type": "object"}}))
    assert accepts(held, tokenizer, {"name": "f", "arguments": {"x": {"anything": [1, None]}}})


def test_the_parts_of_an_allof_stay_open(tokenizer: Tokenizer) -> None:
    """A closed part would forbid the properties that the other part requires."""
    defined = {name: {"properties": {name: {"type": "integer"}}, "required": [name]} for name in "ab"}
    both = {"type": "object", "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}
    held = constraint(tokenizer, tool("f", {"x": both}, **{"$defs": defined}))
    assert accepts(held, tokenizer, {"name": "f", "arguments": {"x": {"a": 1, "b": 2}}})
    assert not accepts(held, tokenizer, {"name": "f", "arguments": {"x": {"a": 1}}})


def test_every_tool_has_its_own_definitions(tokenizer: Tokenizer) -> None:
    tools = [
        tool(name, {"x": {"$ref": "#/$defs/X"}}, **{"$defs": {"X": {"type": kind}}})
        for name, kind in (("f", "int"), ("g", "str"))
    ]
    held = constraint(tokenizer, *tools)
    assert accepts(held, tokenizer, {"name": "f", "arguments": {"x": 1}})
    assert accepts(held, tokenizer, {"name": "g", "arguments": {"x": "1"}})
    assert not accepts(held, tokenizer, {"name": "f", "arguments": {"x": "1"}}), "X of tool g"


def test_a_schema_cannot_change_the_options_of_llguidance(tokenizer: Tokenizer) -> None:
    """llguidance reads options from a schema, and schemas are not trusted."""
    loose = {"x-guidance": {"whitespace_flexible": True, "lenient": True}}
    held = constraint(tokenizer, tool("f", {"x": {"type": "integer"}}, **loose))
    assert not accepts(held, tokenizer, '{"name": "f", "arguments": { "x": 1}}')
    with pytest.raises(ValueError, match="tool 'f' cannot be enforced"):
        constraint(tokenizer, tool("f", {"x": {"not": {"type": "integer"}}}, **loose))


# --- one call after another ---------------------------------------------------


def test_constraint_is_active_from_begin_to_the_end_of_each_call(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, tool("now"))
    compiled = held._matcher
    assert tokenizer.decode([held.start_id, held.end_id]) == "<tool_call></tool_call>"
    for _ in range(3):
        assert not held.active
        held.begin()
        assert held.active
        write(held, tokenizer, '{"name": "now", "arguments": {}}')
        assert held.active
        held.advance(held.end_id)
    assert held._matcher is compiled, "the grammar is compiled once"


def test_a_call_can_be_dropped(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, tool("now"))
    for again in (held.begin, held.reset):
        held.begin()
        write(held, tokenizer, '{"name": "now')
        again()
    assert not held.active
    assert accepts(held, tokenizer, {"name": "now", "arguments": {}})


def test_a_refused_token_does_not_change_the_state(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, tool("now"))
    held.begin()
    for id in tokenizer.encode('{"name": "now", "arguments": {}}'):
        with pytest.raises(ValueError, match=f"token {held.end_id} was not allowed here"):
            held.advance(held.end_id)
        held.advance(id)
    held.advance(held.end_id)
    assert not held.active


def test_outside_a_call_allowed_and_advance_are_errors(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, tool("now"))
    for use in (held.allowed, lambda: held.advance(held.end_id)):
        with pytest.raises(RuntimeError, match="there is no tool call in progress"):
            use()


def test_a_constraint_works_in_another_thread(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, tool("now"))
    assert in_a_thread(lambda: accepts(held, tokenizer, {"name": "now", "arguments": {}}))


# --- what is refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "whatever"}, "Invalid type: whatever"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "regex"),
        ({"type": "string", "format": "int32"}, "Unknown format: int32"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "unsatisfiable"),
        ({"$ref": "#/$defs/nowhere"}, "nowhere"),
        ({"type": "number", "minimum": float("nan")}, "json"),
    ],
)
def test_an_unenforceable_schema_is_refused_with_the_name_of_its_tool(
    tokenizer: Tokenizer, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"the schema of tool 'bad' cannot be enforced: .*{reason}"):
        constraint(tokenizer, tool("good"), tool("bad", {"x": schema}))


def test_a_schema_that_costs_too_much_is_refused_with_the_name_of_its_tool(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constrain, "compile_problem", lambda grammar: "1000003" in grammar and "it is large")
    with pytest.raises(ValueError, match=r"^the schema of tool 'bad' cannot be enforced: it is large$"):
        constraint(tokenizer, tool("good"), tool("bad", {"x": {"multipleOf": 1_000_003}}))


@pytest.mark.parametrize("parameters", [{"type": "string"}, {"type": ["object", "null"]}, [1], "x"])
def test_arguments_must_be_an_object(tokenizer: Tokenizer, parameters: Any) -> None:
    with pytest.raises(ValueError, match="the schema of tool 'bad' cannot be enforced"):
        constraint(tokenizer, {"name": "bad", "parameters": parameters})


def test_tools_without_a_name_and_no_tools_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="there are no tools to constrain calls to"):
        constraint(tokenizer)
    for nameless in ({}, {"name": ""}, {"function": {"name": 3}}, {"function": "f"}):
        with pytest.raises(ValueError, match="tool 2 has no name"):
            constraint(tokenizer, tool("f"), nameless)


def test_the_tokenizer_must_have_the_two_tags(tokenizer: Tokenizer) -> None:
    without = Tokenizer(tokenizer._plain_backend, {}, None)
    with pytest.raises(ValueError, match="<tool_call> is no token of this model"):
        constraint(without, tool("f"))
    with pytest.raises(ValueError, match="<tool_call> is no token of this model"):
        constraint(tokenizer, tool("f"), vocab_size=15)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    fresh = Tokenizer.from_pretrained(DEMO_FOLDER)
    with pytest.raises(RuntimeError, match=r"needs the package llguidance: pip install 'exaone4_mlx\[constrain\]'"):
        constraint(fresh, tool("f"))
