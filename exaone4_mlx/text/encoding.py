"""Texts -> rows of token ids, padded, as lists or arrays; and rows of ids -> texts. The calls are transformers'.

Notes:
- Arrays are NumPy's or MLX's. `arrays.py` imports MLX, and is imported when a caller asks for an array.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Sequence, Set
from typing import Any

import tokenizers

from ..files.folders import read_token
from .template import ChatTemplate

TENSORS = ("mlx", "np")
SIDES = ("left", "right")


class Encoding(dict[str, Any]):
    """`input_ids` and `attention_mask` (0 for padding), as keys and as attributes: a list or an array [B, L] each.

    `model.generate(**encoding)` and `model.forward(**encoding)` take it.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"an Encoding has {' and '.join(self)}, and no {name}") from None

    def to(self, device: Any) -> Encoding:
        """Itself. Raises ValueError for a device that MLX does not have, and for lists."""
        for value in self.values():
            if not hasattr(value, "to"):
                raise ValueError("only arrays of MLX have a device: set return_tensors='mlx'")
            value.to(device)
        return self


def encoding(
    rows: Sequence[list[int]],
    *,
    several: bool,
    pad_id: int | None,
    padding: bool | str = False,
    padding_side: str = "right",
    max_length: int | None = None,
    return_tensors: str | None = None,
) -> Encoding:
    """The `Encoding` of rows; of the one row itself if not `several` and no array is wanted.

    `padding` is True ("longest"), "max_length" or False ("do_not_pad"). Raises ValueError for an unknown option, for
    rows that need padding and have none, and for a tokenizer without a padding token.
    """
    if return_tensors is not None and return_tensors not in TENSORS:
        raise ValueError(f"return_tensors must be 'mlx', 'np' or None (lists), not {return_tensors!r}")
    if padding_side not in SIDES:
        raise ValueError(f"padding_side must be 'left' or 'right', not {padding_side!r}")
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding must be True, False, 'longest' or 'max_length', not {padding!r}")
    if padding == "max_length" and max_length is None:
        raise ValueError("padding='max_length' needs max_length")
    lengths = {len(row) for row in rows}
    masks = [[1] * len(row) for row in rows]
    if padding and padding != "do_not_pad":
        length = max(lengths, default=0)
        if padding == "max_length":
            length = max(length, max_length or 0)
        if pad_id is None and lengths != {length}:
            raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token = tokenizer.eos_token")
        rows = [_padded(row, length, pad_id, padding_side) for row in rows]
        masks = [_padded(mask, length, 0, padding_side) for mask in masks]
    elif return_tensors and len(lengths) > 1:
        raise ValueError(f"rows of {min(lengths)} to {max(lengths)} tokens are no array: set padding=True")
    columns: dict[str, Any] = {"input_ids": list(rows), "attention_mask": masks}
    if return_tensors == "mlx":
        from .arrays import TokenArray

        return Encoding({name: TokenArray(values) for name, values in columns.items()})
    if return_tensors == "np":
        import numpy as np

        return Encoding({name: np.array(values, dtype=np.int64) for name, values in columns.items()})
    return Encoding(columns if several else {name: values[0] for name, values in columns.items()})


class EncodesBatches:
    """`tokenizer(texts)`, and what mlx-lm reads of a tokenizer."""

    #: Both may be set: the token that fills rows of a batch, or None, and the side, "left" or "right".
    pad_token: str | None
    padding_side: str

    _backend: tokenizers.Tokenizer
    _config: dict[str, Any]
    stop_token_ids: frozenset[int]
    _template: ChatTemplate | None

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template."""
        return None if self._template is None else self._template.source

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text in other models. EXAONE 4 has it and puts it nowhere."""
        return read_token(self._config, "bos_token")

    @property
    def eos_token_ids(self) -> set[int]:
        """mlx-lm's name for `stop_token_ids`."""
        return set(self.stop_token_ids)

    def get_vocab(self) -> dict[str, int]:
        """The id of each token, as it is stored."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def pad_token_id(self) -> int | None:
        """The id of `pad_token`. Raises ValueError if it is not one token."""
        ids = self.encode(self.pad_token) if self.pad_token else [None]
        if len(ids) != 1:
            raise ValueError(f"pad_token {self.pad_token!r} is not a token; take tokenizer.eos_token, for example")
        return ids[0]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """The ids of a text, or of each of several, with an attention mask; text and errors as for `encode`.

        `return_tensors` "mlx" or "np" gives arrays [B, L]. `padding` True fills rows up to the longest one, and
        "max_length" up to `max_length`, with `pad_token`, on `padding_side` (by default `tokenizer.padding_side`; for
        `model.generate` it must be "left"). `truncation` cuts rows to `max_length`. EXAONE's tokenizer has no special
        tokens to add.
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError("the text must be a string or a list of strings")
        if truncation not in (True, False) or (truncation and (max_length is None or max_length < 1)):
            raise ValueError(f"truncation must be True, with a max_length of at least 1, or False, not {truncation!r}")
        if max_length is not None and not (truncation or padding == "max_length"):
            raise ValueError("max_length is for truncation=True or padding='max_length'")
        rows = [self.encode(one)[: max_length if truncation else None] for one in texts]
        return self._encoding(
            rows,
            several=not isinstance(text, str),
            padding=padding,
            padding_side=padding_side,
            max_length=max_length,
            return_tensors=return_tensors,
        )

    def _encoding(self, rows: list[list[int]], padding_side: str | None = None, **options: Any) -> Encoding:
        return encoding(rows, pad_id=self.pad_token_id, padding_side=padding_side or self.padding_side, **options)


def _padded(row: list[int], length: int, value: int | None, side: str) -> list[Any]:
    padding = [value] * (length - len(row))
    return padding + row if side == "left" else row + padding


def read_ids(ids: Any) -> list[int]:
    """The ids of one row: an id, a sequence of ids, or an integer array of any kind.

    Raises ValueError for several rows and for what are no whole numbers.
    """
    listed = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(listed, (str, bytes)) or not isinstance(listed, Iterable):
        listed = [listed]
    read = []
    for id in listed:
        if isinstance(id, (list, tuple)) or getattr(id, "shape", None):
            raise ValueError("these are several rows of ids, and one is needed: take ids[0], or batch_decode")
        try:
            read.append(operator.index(id.item() if hasattr(id, "item") else id))
        except TypeError:
            raise ValueError(f"token ids must be whole numbers, not {id!r}") from None
    return read


def without_tokens(tokenizer: str, ids: Set[int]) -> str:
    """The tokenizer.json of a tokenizer without these added tokens.

    Its model may know their text as a word (`ignore_merges`): that word gets a name which no text has.
    """
    description = json.loads(tokenizer)
    model, ordinary = description["model"], description["added_tokens"]
    words = {text for text, id in model["vocab"].items() if id in ids}
    model["vocab"] = {f"\0{text}" if text in words else text: id for text, id in model["vocab"].items()}
    model["merges"] = [pair for pair in model["merges"] if words.isdisjoint((*pair, "".join(pair)))]
    ordinary = [token for token in ordinary if token["id"] not in ids]
    return json.dumps(description | {"added_tokens": ordinary, "post_processor": None})
