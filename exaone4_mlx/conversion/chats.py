"""Chats for calibration and evaluation: prompts of the package, answered by the original model itself.

Notes:
- One half of the replies is greedy, the other drawn with a fixed seed, and half of each begin with a thought. A prompt
  of several user messages gets the model's own answers in between.
- A chat is kept as token ids, so that each token is one that the model read or wrote. A reply of MAX_TOKENS is cut.
- The whole model is in memory for it, once in a conversion. Replies are made one after the other: those of a batch
  depend on its rounding, and the same conversion would write other bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..generation.generate import generate
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import OpenCheckpoint, Progress, fill, has_gpu, memory_of_this_machine
from ..text.input_messages import Message
from ..text.tokenizer import Tokenizer
from .texts import CALIBRATION

PROMPTS, HELD_OUT_PROMPTS = (CALIBRATION.with_name(f"{part}_prompts.jsonl") for part in ("calibration", "held_out"))
MAX_TOKENS = 192  # of one reply
TEMPERATURE, SEED = 1.0, 0
CPU_PARAMETERS = 1 << 26  # of a model that answers the prompts in minutes without a GPU
CHATS_TOKENS = 1 << 15  # of all chats, at most about
LEAST_CONTEXT = 2048  # tokens: room for the prompts and their replies
CACHE_BYTES = 1 << 28  # for caches and activations

#: The token ids of a chat, and how many are before its last reply.
Chat = tuple[list[int], int]


def chats_digest(file: Path = PROMPTS) -> str:
    """A digest of the prompts and of how they are answered."""
    settings = f"{MAX_TOKENS} {TEMPERATURE} {SEED} "
    return hashlib.sha256(settings.encode() + file.read_bytes()).hexdigest()


def can_answer(opened: OpenCheckpoint) -> bool:
    """Whether the whole model fits into memory here, and answers quickly: on a GPU, or a small one.

    The prompts must have room in its context.
    """
    parameters = sum(map(math.prod, opened.shapes.values()))
    if not has_gpu() and parameters > CPU_PARAMETERS:
        return False
    if opened.config.max_position_embeddings < LEAST_CONTEXT:
        return False
    return answering_bytes(opened) <= memory_of_this_machine()


def answering_bytes(opened: OpenCheckpoint) -> int:
    """The memory in which the model answers, about."""
    return sum(map(math.prod, opened.shapes.values())) * _dtype().size * 5 // 4 + CACHE_BYTES


def make_chats(
    opened: OpenCheckpoint, tokenizer: Tokenizer, file: Path = PROMPTS, progress: Progress | None = None
) -> list[Chat]:
    """The prompts of a file, answered by the model of a checkpoint. `progress(done, total)` counts prompts.

    Raises ValueError for prompts that the template refuses or that leave no room for a reply.
    """
    model = Exaone4ForCausalLM(opened.config)
    fill(model, ((name, opened.source.weight(name, dtype=_dtype())) for name in opened.shapes))
    entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    chats = []
    for number, entry in enumerate(entries):
        chats.append(_answered(model, tokenizer, entry, number))
        if progress:
            progress(number + 1, len(entries))
    return chats


def _answered(model: Exaone4ForCausalLM, tokenizer: Tokenizer, entry: Mapping[str, Any], number: int) -> Chat:
    """A prompt with the model's answers, the last of which is cut off where the model calls a tool."""
    drawn, thinking = number % 4 in (1, 2), number % 4 >= 2
    messages: list[Message] = []
    chat: Chat = [], 0
    for message in entry["messages"]:
        messages.append(message)
        if message["role"] == "system":
            continue
        ids = tokenizer.apply_chat_template(messages, entry.get("tools", ()), enable_thinking=thinking)
        reply = generate(
            model, tokenizer, ids, temperature=TEMPERATURE * drawn, seed=SEED + number, max_tokens=MAX_TOKENS
        )
        end = tokenizer.encode(tokenizer.eos_token) * (reply.finish_reason != "length")
        chat = ids + list(reply.token_ids) + end, len(ids)
        if reply.tool_calls or not reply.text.strip():  # no user message can follow
            break
        messages.append({"role": "assistant", "content": reply.text})
    return chat


def _dtype() -> mx.Dtype:
    """The fast type of this device."""
    return mx.bfloat16 if has_gpu() else mx.float32
