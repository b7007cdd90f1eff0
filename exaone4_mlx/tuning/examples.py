"""Data -> examples: token ids, and which of them the model learns.

Notes:
- The checkpoint's chat template renders the prompt, and control strings inside data become ordinary tokens. The last
  reply follows as the model would write it.
- Only what the model itself would write is learned: the text and the calls of each turn of the assistant with the token
  that ends the turn. The empty think block belongs to the prompt. The newline after a turn comes from the template.
- The template erases earlier thoughts, so only the thought of the last turn is learned. `all_turns` makes one example
  of each turn, and each keeps its thought.
- An example that is too long loses its front. A reply is never cut: an example with a longer reply is refused.
- A text without turns is learned from its second token on, with an end-of-turn token behind it, as in mlx-lm. A longer
  text is split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..conversion.texts import Passage, encode_reply, read_passage, read_passages, windows
from ..text.format import count_text
from ..text.tokenizer import Tokenizer

SPLITS = ("train", "valid", "test")
#: A folder with train.jsonl and perhaps valid.jsonl and test.jsonl; the same by name; or lessons to train on.
Data = str | Path | Mapping[str, Sequence[Any]] | Sequence[Any]


@dataclass(frozen=True)
class Example:
    """The ids of one example, and for each whether it is learned.

    `cut` tokens were removed from its front. `unlearned` is the number of past replies that are not learned, because
    the template renders them in another way than the model would write them.
    """

    place: str
    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    cut: int = 0
    unlearned: int = 0

    @property
    def learned_tokens(self) -> int:
        return sum(self.learned)


@dataclass(frozen=True)
class Examples:
    """The examples of each split. The splits `valid` and `test` may be empty."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def digest(self) -> str:
        """Equal digests mean the same ids and the same learned tokens in the same order."""
        value = hashlib.sha256()
        for split in (self.train, self.valid, self.test):
            for example in split:
                value.update(repr((example.ids, example.learned)).encode())
            value.update(b"|")
        return value.hexdigest()

    def describe(self) -> Iterator[str]:
        """What a user should know about the examples: a line for each split, and one for all that is not learned."""
        for name in SPLITS:
            if split := getattr(self, name):
                lengths = sorted(len(example.ids) for example in split)
                learned = sum(example.learned_tokens for example in split)
                yield (
                    f"{name}: {count_text(len(split), 'example')} of {lengths[0]:,} to {lengths[-1]:,} tokens (median "
                    f"{lengths[len(lengths) // 2]:,}), {sum(lengths):,} in all, {learned:,} of them learned"
                )
        everything = (*self.train, *self.valid, *self.test)
        if cut := [example for example in everything if example.cut]:
            yield (
                f"{count_text(len(cut), 'example')} longer than max_seq_length lost the front, and no reply was cut; "
                f"the first is {cut[0].place}, which lost {count_text(cut[0].cut, 'token')}"
            )
        if others := [example for example in everything if example.unlearned]:
            yield (
                f"{count_text(sum(example.unlearned for example in others), 'past turn')} cannot be "
                f"learned as the template renders them (all_turns learns them); the first is in {others[0].place}"
            )


def read_data(data: Data) -> dict[str, list[Passage]]:
    """The passages of each split.

    `data` is a folder with train.jsonl and perhaps valid.jsonl and test.jsonl, in mlx-lm's forms: see `read_passage`.
    It may also be a mapping of these names to lists of such objects, or a list of objects to train on.

    Raises FileNotFoundError if there is nothing to train on, and ValueError for a malformed object (with file and
    line).
    """
    if isinstance(data, (str, Path)):
        folder = Path(data).expanduser()
        if not (folder / "train.jsonl").is_file():
            raise FileNotFoundError(f"data must be a folder with train.jsonl, and {folder} has none")
        return {name: read_passages(file) if (file := folder / f"{name}.jsonl").is_file() else [] for name in SPLITS}
    splits = data if isinstance(data, Mapping) else {"train": data}
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"data has no split {min(map(str, unknown))!r}; the splits are {', '.join(SPLITS)}")
    found = {
        name: [read_passage(entry, f"{name}, example {number}") for number, entry in enumerate(splits.get(name, ()), 1)]
        for name in SPLITS
    }
    if not found["train"]:
        raise ValueError("data has no example to train on")
    return found


def make_examples(
    splits: Mapping[str, Iterable[Passage]], tokenizer: Tokenizer, max_seq_length: int, all_turns: bool = False
) -> Examples:
    """The examples of all passages. Raises ValueError, with file and line, for one that cannot be rendered or cut."""
    opening = generation_prompt(tokenizer)
    made: dict[str, tuple[Example, ...]] = {}
    for name in SPLITS:
        made[name] = tuple(
            example
            for passage in splits.get(name, ())
            for example in examples_of(passage, tokenizer, max_seq_length, all_turns, opening)
        )
    return Examples(**made)


def examples_of(
    passage: Passage, tokenizer: Tokenizer, max_seq_length: int, all_turns: bool, opening: Sequence[int]
) -> Iterator[Example]:
    """The examples of one passage: several of a long text, and with `all_turns` of a conversation."""
    try:
        if not passage.messages:
            ids = [*encode_reply(passage, tokenizer)[0], *tokenizer.encode(tokenizer.eos_token)]
            for part in windows(ids, max_seq_length):
                if len(part) > 1:
                    yield Example(passage.place, tuple(part), (False, *[True] * (len(part) - 1)))
            return
        for turn in _turns(passage) if all_turns else [passage]:
            ids, prompt_tokens = encode_reply(turn, tokenizer)
            learned = [False] * prompt_tokens + [True] * (len(ids) - prompt_tokens)
            past = [] if all_turns else [*past_replies(ids[:prompt_tokens], opening, tokenizer.stop_token_ids)]
            for start, end in past:
                learned[start:end] = [True] * (end - start)
            unlearned = 0 if all_turns else sum(1 for _ in _turns(passage)) - 1 - len(past)
            reply_tokens, cut = len(ids) - prompt_tokens, max(0, len(ids) - max_seq_length)
            if reply_tokens >= max_seq_length:
                raise ValueError(
                    f"the last reply has {reply_tokens:,} tokens and would be cut off; max_seq_length is "
                    f"{max_seq_length:,}: raise it, or leave this example out"
                )
            yield Example(passage.place, tuple(ids[cut:]), (False, *learned[cut + 1 :]), cut, unlearned)
    except ValueError as error:
        raise ValueError(f"{passage.place}: {error}") from error


def _turns(passage: Passage) -> Iterator[Passage]:
    """The conversation up to each turn of the assistant that says something."""
    messages = passage.messages or ()
    for number, message in enumerate(messages):
        if number and message["role"] == "assistant" and (message["content"].strip() or message.get("tool_calls")):
            yield replace(passage, messages=messages[: number + 1])


def generation_prompt(tokenizer: Tokenizer) -> list[int]:
    """The ids with which the template opens a turn of the assistant that has no thought."""
    asked = [{"role": "user", "content": "x"}]
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=False)
    prompt = tokenizer.apply_chat_template(asked)
    if prompt[: len(before)] != before or len(prompt) == len(before):
        raise ValueError("the chat template does not open a turn of the assistant after the messages")
    return prompt[len(before) :]


def past_replies(
    prompt: Sequence[int], opening: Sequence[int], stop_token_ids: Iterable[int]
) -> Iterator[tuple[int, int]]:
    """(start, end) of each past reply in a prompt: from behind `opening` to the token that ends the turn.

    Control tokens in a prompt come from the template only, so `opening` is a turn of the assistant wherever it is.
    """
    stops, size, place = set(stop_token_ids), len(opening), 0
    while place < len(prompt) - size:
        if prompt[place] != opening[0] or list(prompt[place : place + size]) != list(opening):
            place += 1
            continue
        start = place + size
        end = next((i for i in range(start, len(prompt)) if prompt[i] in stops), None)
        if end is None:  # the turn that is still open
            return
        yield start, end + 1
        place = end + 1
