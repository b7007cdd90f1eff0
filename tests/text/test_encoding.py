"""Batches of texts, and ids in any form: the calls of transformers' tokenizers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from exaone4_mlx import Tokenizer
from exaone4_mlx.files.folders import DEMO_FOLDER

HELLO = [{"role": "user", "content": "Hello"}]
TEXTS = ["Hello", "대한민국의 수도는?", "What is 3 + 4?"]


@pytest.fixture
def own(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that a test may change."""
    return Tokenizer(tokenizer._backend, tokenizer._config, tokenizer._template)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(DEMO_FOLDER))


# --- ids -> text --------------------------------------------------------------


def test_decode_takes_integers_of_any_kind(tokenizer: Tokenizer) -> None:
    """int32 arrays failed."""
    ids = tokenizer.encode("Hello, 한글")
    rows: list[Any] = [ids, tuple(ids), range(5, 9), iter(ids), [np.int64(id) for id in ids], list(mx.array(ids))]
    rows += [np.array(ids, dtype) for dtype in (np.int32, np.int64, np.uint16, ">i4")]
    rows += [mx.array(ids, dtype) for dtype in (mx.int32, mx.int64, mx.uint32, mx.int16)]
    for row in rows:
        expected = tokenizer.decode([5, 6, 7, 8]) if isinstance(row, range) else "Hello, 한글"
        assert tokenizer.decode(row) == expected, row
    one = tokenizer.encode("Hello")[0]
    for id in (one, np.int32(one), np.array(one), mx.array(one), [one]):
        assert tokenizer.decode(id) == "Hello", id
    assert tokenizer.decode([]) == tokenizer.decode(mx.array([], mx.int32)) == ""


def test_decode_refuses_what_is_not_one_row_of_ids(tokenizer: Tokenizer) -> None:
    for rows in ([[5, 6]], ([5], [6]), np.array([[5, 6]]), mx.array([[5, 6]]), [mx.array([5]), mx.array([6])]):
        with pytest.raises(
            ValueError, match=r"these are several rows of ids, and one is needed: take ids\[0\], or batch_decode"
        ):
            tokenizer.decode(rows)
    for ids in ("Hello", [5.0], np.array([5.0]), mx.array([0.5]), None, ["5"]):
        with pytest.raises(ValueError, match="token ids must be whole numbers, not"):
            tokenizer.decode(ids)


def test_batch_decode_reads_rows(tokenizer: Tokenizer) -> None:
    encoded = tokenizer(TEXTS, padding=True, return_tensors="mlx").input_ids
    assert [text.replace("[PAD]", "") for text in tokenizer.batch_decode(encoded)] == TEXTS
    assert tokenizer.batch_decode(np.array(encoded), skip_special_tokens=True) == TEXTS
    assert tokenizer.batch_decode(list(map(tokenizer.encode, TEXTS))) == TEXTS


# --- texts -> ids -------------------------------------------------------------


def test_a_batch_is_padded_on_either_side(own: Tokenizer) -> None:
    rows = list(map(own.encode, TEXTS))
    longest = max(map(len, rows))
    assert own("Hello") == {"input_ids": rows[0], "attention_mask": [1] * len(rows[0])}
    assert own(TEXTS)["input_ids"] == rows
    right = own(TEXTS, padding=True)
    assert right.input_ids == [row + [own.pad_token_id] * (longest - len(row)) for row in rows]
    own.padding_side = "left"
    left = own(TEXTS, padding="longest", return_tensors="mlx")
    assert isinstance(left.input_ids, mx.array) and left.input_ids.shape == left["attention_mask"].shape == (3, longest)
    assert left.input_ids.tolist() == [[own.pad_token_id] * (longest - len(row)) + row for row in rows]
    assert left.attention_mask.tolist() == [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    assert own(TEXTS, padding="max_length", max_length=40, return_tensors="np").input_ids.shape == (3, 40)
    assert own("Hello", return_tensors="np").input_ids.shape == (1, len(rows[0]))
    assert own(TEXTS[1], truncation=True, max_length=3).input_ids == rows[1][:3]
    own.pad_token = own.eos_token
    assert own(TEXTS, padding=True).input_ids[0][0] == own.eos_token_id


def test_wrong_batches_are_refused(own: Tokenizer) -> None:
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (TEXTS, {"return_tensors": "mlx"}, "tokens are no array: set padding=True"),
        (TEXTS, {"return_tensors": "pt"}, r"return_tensors must be 'mlx', 'np' or None \(lists\), not 'pt'"),
        (TEXTS, {"padding": "most"}, "padding must be True, False, 'longest' or 'max_length', not 'most'"),
        (TEXTS, {"padding": "max_length"}, "padding='max_length' needs max_length"),
        (TEXTS, {"padding": True, "padding_side": "middle"}, "padding_side must be 'left' or 'right', not 'middle'"),
        (TEXTS, {"max_length": 3}, "max_length is for truncation=True or padding='max_length'"),
        (TEXTS, {"truncation": True}, "truncation must be True, with a max_length"),
        (5, {}, "the text must be a string or a list of strings"),
        ([], {}, "the text must be a string or a list of strings"),
        ([HELLO], {}, "the text must be a string or a list of strings"),
        (["\ud83d"], {}, "half a character"),
    ]
    for texts, options, message in refused:
        with pytest.raises(ValueError, match=message):
            own(texts, **options)
    own.pad_token = None
    with pytest.raises(ValueError, match=r"no padding token: set tokenizer.pad_token = tokenizer.eos_token"):
        own(TEXTS, padding=True)
    own.pad_token = "Hello there"
    with pytest.raises(ValueError, match="pad_token 'Hello there' is not a token"):
        own(TEXTS, padding=True)


def test_encodings_are_read_by_key_and_attribute_and_have_a_device(tokenizer: Tokenizer) -> None:
    encoded = tokenizer("Hello", return_tensors="mlx")
    for device in ("gpu", "mps", "cpu", mx.default_device(), mx.cpu):
        assert encoded.to(device) is encoded and encoded.input_ids.to(device) is encoded["input_ids"]
    with pytest.raises(ValueError, match=r"device must be one of auto, cpu, gpu, mps or an mx\.Device, not .cuda."):
        encoded.input_ids.to("cuda")
    with pytest.raises(ValueError, match="set return_tensors='mlx'"):
        tokenizer("Hello").to("gpu")
    with pytest.raises(AttributeError, match="an Encoding has input_ids and attention_mask, and no labels"):
        encoded.labels  # noqa: B018


@pytest.mark.oracle
def test_batches_equal_those_of_transformers(tokenizer: Tokenizer, theirs: Any) -> None:
    for side, padding, cut in itertools.product(
        ("left", "right"), (False, True, "max_length"), ({}, {"truncation": True, "max_length": 4}, {"max_length": 30})
    ):
        if (padding == "max_length") != (cut == {"max_length": 30}):
            continue
        for tensors in (None, "np", "mlx") if padding else (None,):
            options = {"padding": padding, "padding_side": side, "return_tensors": tensors, **cut}
            expected, found = theirs(TEXTS, **options), tokenizer(TEXTS, **options)
            assert set(expected) == set(found)
            for name in found:
                assert np.array_equal(np.array(expected[name], object), np.array(found[name], object)), options
                assert getattr(expected[name], "dtype", None) == getattr(found[name], "dtype", None)
    assert dict(theirs("Hello")) == dict(tokenizer("Hello"))
    assert (theirs.pad_token_id, theirs.padding_side) == (tokenizer.pad_token_id, tokenizer.padding_side)


# --- conversations -> ids ------------------------------------------------------


def test_prompts_come_as_arrays(tokenizer: Tokenizer) -> None:
    ids = tokenizer.apply_chat_template(HELLO)
    found = tokenizer.apply_chat_template(HELLO, return_tensors="mlx", add_generation_prompt=True)
    assert isinstance(found, mx.array) and found.tolist() == [ids] and found.dtype == mx.int32
    assert tokenizer.apply_chat_template(HELLO, return_tensors="np").tolist() == [ids]
    whole = tokenizer.apply_chat_template(HELLO, return_dict=True)
    assert whole == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    several = [HELLO, [*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO]]
    assert tokenizer.apply_chat_template(several) == [tokenizer.apply_chat_template(one) for one in several]
    texts = tokenizer.apply_chat_template(several, tokenize=False)
    assert texts == [tokenizer.apply_chat_template(one, tokenize=False) for one in several]
    batch = tokenizer.apply_chat_template(several, return_tensors="mlx", return_dict=True, padding=True)
    assert batch.input_ids.shape == (2, max(map(len, tokenizer.apply_chat_template(several))))


def test_a_prompt_may_have_a_template_of_its_own(tokenizer: Tokenizer) -> None:
    source = "{{ documents[0].text if documents }}{{ messages[0].content }}"
    asked = {"chat_template": source, "tokenize": False}
    assert tokenizer.apply_chat_template(HELLO, **asked) == "Hello"
    assert tokenizer.apply_chat_template(HELLO, documents=[{"text": "D: "}], **asked) == "D: Hello"
    ids = tokenizer.apply_chat_template(HELLO, documents=[{"text": "[|user|]"}], chat_template=source)
    assert tokenizer.encode("[|user|]")[0] not in ids, "documents forge no control token"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"documents": [{"text": "D"}]}, "it has no option documents"),
        ({"return_assistant_tokens_mask": True}, "it has no option return_assistant_tokens_mask"),
        ({"tokenize": False, "return_tensors": "mlx"}, "are for ids, and tokenize=False gives text"),
        ({"tokenize": False, "return_dict": True}, "are for ids, and tokenize=False gives text"),
        ({"return_dict": "yes"}, "return_dict must be true or false, not 'yes'"),
        ({"return_tensors": "pt"}, "return_tensors must be"),
        ({"chat_template": "{% if %}"}, "chat_template: the chat template fails"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            tokenizer.apply_chat_template(HELLO, **options)


@pytest.mark.oracle
def test_prompts_equal_those_of_transformers(tokenizer: Tokenizer, theirs: Any) -> None:
    roll = {"type": "function", "function": {"name": "roll", "description": "", "parameters": {"type": "object"}}}
    several = [HELLO, [*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO]]
    options: list[dict[str, Any]] = [
        {"add_generation_prompt": True, "return_tensors": "mlx"},
        {"add_generation_prompt": True, "return_tensors": "np", "enable_thinking": True, "tools": [roll]},
        {"add_generation_prompt": False, "return_dict": False},
        {"add_generation_prompt": True, "tokenize": False},
        {"add_generation_prompt": True, "return_dict": True},
        {"add_generation_prompt": True, "chat_template": "{{ messages[0].content }}"},
    ]
    for messages, asked in itertools.product((HELLO, several), options):
        given = {"return_dict": False, "padding": messages is several and "return_tensors" in asked} | asked
        assert repr(theirs.apply_chat_template(messages, **given)) == repr(
            tokenizer.apply_chat_template(messages, **given)
        ), asked


# --- from_pretrained ------------------------------------------------------------


def test_a_tokenizer_comes_from_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "demo" was "demo has no tokenizer.json", and a hub id likewise."""
    assert Tokenizer.from_pretrained("demo").encode("Hello") == Tokenizer.from_pretrained(DEMO_FOLDER).encode("Hello")
    asked = []

    def find(path_or_repo: str, revision: str | None, files: Any) -> Path:
        asked.append((path_or_repo, revision, files))
        return DEMO_FOLDER

    monkeypatch.setattr("exaone4_mlx.text.tokenizer.find_folder", find)
    made = Tokenizer.from_pretrained("LGAI-EXAONE/EXAONE-4.0-1.2B", revision="abc", padding_side="left")
    files = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    assert asked == [("LGAI-EXAONE/EXAONE-4.0-1.2B", "abc", files)], "no weights are downloaded"
    assert made.padding_side == "left"
    made.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert Tokenizer.from_pretrained(tmp_path).padding_side == "left"
