"""Messages are checked before a template renders them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from exaone4_mlx import Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]


def test_text_parts_are_joined(tokenizer: Tokenizer) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert tokenizer.apply_chat_template(parts) == tokenizer.apply_chat_template(HELLO)


def test_the_content_of_a_tool_message_may_be_any_json(tokenizer: Tokenizer) -> None:
    for content in ({"a": [1, "x"]}, [1, 2], 3.5, None, "text", True):
        messages = [*HELLO, {"role": "tool", "content": content}]
        expected = f'<tool_result>{{"result": {json.dumps(content)}}}</tool_result>'
        assert expected in tokenizer.apply_chat_template(messages, tokenize=False), content


MALFORMED: list[tuple[Any, str]] = [
    ([], "there are no messages"),
    ("Hello", "messages must be a list of messages, not str"),
    (["Hello"], "message 0 must be an object with role and content, not str"),
    ([{"role": "robot", "content": "x"}], "message 0 has the unknown role 'robot'; roles are system, user"),
    (
        [*HELLO, {"role": "user", "content": 5}],
        "message 1: user content must be a string or a list of text parts, not int",
    ),
    ([{"role": "system", "content": None}], "message 0: system content must be a string .* not NoneType"),
    ([{"role": "user"}], "message 0: user content must be a string"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "message 0: content may have text parts only"),
    ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "message 0: user content"),
    ([{"role": "assistant", "tool_calls": "f"}], "tool_calls must be a list"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}], "needs a name and arguments"),
    ([{"role": "user", "content": "\ud83d"}], "half a character"),
    ([{"role": "tool", "content": {(1, 2): 3}}], "must be JSON values"),
    (
        [{"role": "tool", "content": eval("[" * 90 + "]" * 90)}, {"role": "tool", "content": {1, 2}}],
        "must be JSON values",
    ),
]


def test_malformed_messages_are_refused(tokenizer: Tokenizer) -> None:
    for messages, message in MALFORMED:
        with pytest.raises(ValueError) as caught:
            tokenizer.apply_chat_template(messages)
        assert re.search(message, str(caught.value)), f"{messages}: {caught.value}"


def test_bare_text_as_arguments_stays_a_text(tokenizer: Tokenizer) -> None:
    """A ToolCall of the parser can go back into the history."""
    for arguments, rendered in (("hello", '"hello"'), ("", "{}"), ("[" * 100_000, '"' + "[" * 100_000 + '"')):
        call = {"name": "f", "arguments": arguments}
        text = tokenizer.apply_chat_template([{"role": "assistant", "tool_calls": [call]}], tokenize=False)
        assert f'"arguments": {rendered}}}</tool_call>' in text
