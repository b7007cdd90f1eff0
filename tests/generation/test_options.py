"""The list of options: each field has help, the typed keyword arguments match, invalid values are refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any, get_type_hints

import pytest

from exaone4_mlx import Chat, KVQuantization, Options, ReplyOptions, Sampling, generate
from exaone4_mlx.generation import reply_options as module
from exaone4_mlx.generation.options import SAMPLING_FIELDS


def test_typed_keyword_arguments_are_the_fields_of_the_dataclass() -> None:
    typed = get_type_hints(ReplyOptions, vars(module))
    assert typed.pop("sampling") == Sampling | None
    assert typed == get_type_hints(Options)
    assert list(typed) == [field.name for field in dataclasses.fields(Options)], "in the same order"


def test_every_field_has_help_and_most_have_a_flag() -> None:
    without_flag = set()
    for field in dataclasses.fields(Options):
        assert field.metadata["help"], field.name
        assert all(flag.startswith("-") for flag in field.metadata["flags"])
        if not field.metadata["flags"]:
            without_flag.add(field.name)
    assert without_flag == {"progress", "response_format", "logits_processors"}


def test_importing_the_options_imports_no_mlx() -> None:
    code = "import sys; from exaone4_mlx import Options; Options(temperature=0); sys.exit('mlx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_sampling_is_a_group_of_the_fields() -> None:
    assert (
        Options.read({"sampling": Sampling(temperature=0)})
        == Options.read({"temperature": 0})
        == Options(temperature=0)
    )
    both = Options.read({"sampling": Sampling(top_k=5), "temperature": 0.5, "thinking": True})
    assert both == Options(top_k=5, temperature=0.5, thinking=True)
    base = Options(top_k=5, min_p=0.1, max_tokens=9)
    assert Options.read({"sampling": Sampling(seed=1)}, base) == Options(seed=1, max_tokens=9), "the whole group"
    assert Options.read({"seed": 1}, base) == Options(top_k=5, min_p=0.1, max_tokens=9, seed=1)
    with pytest.raises(ValueError, match=r"temperature is given twice: by itself and in sampling=Sampling"):
        Options.read({"sampling": Sampling(temperature=0), "temperature": 0.5})


def test_resolved_sampling_is_a_sampling() -> None:
    resolved = Options(top_k=3, max_tokens=5).resolved(thinking=True)
    assert resolved == Sampling(temperature=0.6, top_p=0.95, top_k=3)
    assert tuple(vars(resolved)) == SAMPLING_FIELDS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_new_tokens", "max_tokens"),
        ("enable_thinking", "thinking"),
        ("temp", "temperature"),
        ("do_sample", "temperature"),
        ("stream", "stream_generate"),
        ("kv_bits", "kv=8, kv=4 or kv=KVQuantization"),
        ("context_limit", "max_kv_size"),
        ("thinkng", "thinking"),
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("systemprompt", "system_prompt"),
    ],
)
def test_unknown_names_get_a_hint(name: str, meant: str, unread: Any) -> None:
    where = [lambda **given: Chat(*unread, **given)] if name == "systemprompt" else [
        lambda **given: generate(*unread, "Hello", **given),
        lambda **given: Chat(*unread, **given),
        lambda **given: Chat(*unread).send("Hello", **given),
    ]  # fmt: skip
    for call in where:
        with pytest.raises(TypeError, match=f"there is no option '{name}'; did you mean {meant}"):
            call(**{name: 1})


def test_options_of_the_chat_are_not_options_of_a_turn(unread: Any) -> None:
    with pytest.raises(TypeError, match="did you mean the option of this name where the Chat is made"):
        Chat(*unread).send("Hello", kv=8)
    with pytest.raises(TypeError, match="the options are chat_template_args, "):
        Chat(*unread).send("Hello", colour="red")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1, not 0"),
        ({"max_tokens": True}, "max_tokens must be a whole number of at least 1, not True"),
        ({"thinking_budget": -1}, "thinking_budget must be a whole number of at least 0, not -1"),
        ({"thinking_budget": 1.5}, "thinking_budget must be a whole number of at least 0, not 1.5"),
        ({"prefill_step_size": None}, "prefill_step_size must be a whole number of at least 1, not None"),
        ({"stop": ["a", ""]}, "stop strings must be texts of at least one character"),
        ({"sampling": {"temperature": 0}}, "sampling must be a Sampling, not dict"),
        ({"thinking": 1}, "thinking must be true or false, not 1"),
        ({"constrain_tools": "no"}, "constrain_tools must be true or false, not 'no'"),
        ({"progress": 5}, r"progress must be a function \(done, total\), not 5"),
        ({"temperature": -1}, "temperature must be 0 or more .*, not -1"),
        ({"prefill_response": " "}, "prefill_response must be the text that begins the answer, not ' '"),
        ({"prefill_response": "So", "thinking": True}, "a thought comes before it: use one of them"),
        ({"chat_template_args": [1]}, r"chat_template_args must be values by name, not \[1\]"),
        ({"chat_template_args": {"tools": []}}, "sets variables of the chat template only, not 'tools'"),
        ({"min_tokens": -1}, "min_tokens must be a whole number of at least 0, not -1"),
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens 9 exceeds max_tokens 5"),
        ({"extra_eos_token": 1.5}, "extra_eos_token must be the text or the id of a token, or several, not 1.5"),
    ],
)
def test_invalid_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options.read(options)


def test_stop_accepts_one_text_several_or_none() -> None:
    assert [Options(stop=stop).stops for stop in ("a", ["a", "b"], (), None)] == [("a",), ("a", "b"), (), ()]


def test_repr_shows_values_that_are_not_default() -> None:
    assert repr(Options(temperature=0, thinking=True)) == "Options(temperature=0, thinking=True)"


def test_kv_is_one_value(demo: Any) -> None:
    for kv in (8, KVQuantization.read(demo[0].config, 8)):
        assert generate(*demo, "Hello", temperature=0, kv=kv, max_tokens=5).answer_tokens > 0
    with pytest.raises(ValueError, match="kv must be 8, 4 or a KVQuantization, not 5"):
        generate(*demo, "Hello", kv=5)
