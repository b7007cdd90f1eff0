"""Flags are derived from the fields of `Options`; error messages name them."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from exaone4_mlx.cli import chat, generate
from exaone4_mlx.cli.flags import given_options
from exaone4_mlx.cli.help import with_flag_names
from exaone4_mlx.generation.options import Options


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser


def test_every_option_with_a_flag_is_a_flag_of_generate(parser: argparse.ArgumentParser) -> None:
    help = " ".join(parser.format_help().split())
    values = {int: "3", float: "0.5", str: "text", dict: '{"5": 1}'}
    for field in dataclasses.fields(Options):
        for flag in field.metadata["flags"]:
            assert flag in help, field.name
            value = [values[field.metadata["type"]]] if field.metadata["type"] is not bool else []
            assert field.name in given_options(parser.parse_args(["-p", "x", flag, *value])), flag
    assert "prompt tokens per chunk (default: 2048)" in help


def test_flags_that_are_not_given_leave_the_defaults_of_the_options(parser: argparse.ArgumentParser) -> None:
    assert given_options(parser.parse_args(["-p", "x"])) == {}
    given = given_options(parser.parse_args(["-p", "x", "--temp", "0", "-m", "5", "--stop", "a", "--stop", "b"]))
    assert given == {"temperature": 0.0, "max_tokens": 5, "stop": ["a", "b"]}
    given = given_options(parser.parse_args(["-p", "x", "--logit-bias", '{"5": -1}', "--extra-eos-token", "a", "b"]))
    assert given == {"logit_bias": {"5": -1}, "extra_eos_token": ["a", "b"]}
    given = given_options(parser.parse_args(["-p", "x", "--no-thinking", "--no-stop-on-repetition"]))
    assert given == {"thinking": False, "stop_on_repetition": False}


def test_a_chat_reads_prompts_in_shorter_chunks() -> None:
    parser = argparse.ArgumentParser()
    chat.add_arguments(parser)
    assert given_options(parser.parse_args([])) == {"prefill_step_size": chat.STEP_SIZE}
    assert f"prompt tokens per chunk (default: {chat.STEP_SIZE})" in " ".join(parser.format_help().split())


def test_error_messages_name_flags(parser: argparse.ArgumentParser) -> None:
    for message, expected in {
        "temperature must be 0 or more": "--temp must be 0 or more",
        "max_tokens 5 is too small": "--max-tokens 5 is too small",
        "kv_group_size must be 32": "--kv-group-size must be 32",
        "the seed of stop and tools": "the seed of stop and tools",
        "there is no file /tmp/max_tokens/top_k.py": "there is no file /tmp/max_tokens/top_k.py",
        "rms_norm_eps is missing": "rms_norm_eps is missing",
    }.items():
        assert with_flag_names(message, parser) == expected
