"""The names and types of the fields of `Options`, for type checkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from .options import LogitsProcessor, PrefillProgress, Sampling


class ReplyOptions(TypedDict, total=False):
    """The fields of `Options`, as keyword arguments: for `**options: Unpack[ReplyOptions]`."""

    sampling: Sampling | None
    temperature: float | None
    top_p: float | None
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    xtc_probability: float
    xtc_threshold: float
    seed: int | None
    logit_bias: Mapping[int, float] | None
    thinking: bool
    thinking_budget: int | None
    max_tokens: int | None
    min_tokens: int
    stop: str | Sequence[str] | None
    extra_eos_token: str | int | Sequence[str | int] | None
    prefill_response: str | None
    continue_final_message: bool
    chat_template_args: Mapping[str, Any] | None
    response_format: Any
    logits_processors: Sequence[LogitsProcessor]
    stop_on_repetition: bool
    constrain_tools: bool
    prompt_lookup: bool
    num_draft_tokens: int | None
    logprobs: int | None
    prefill_step_size: int
    progress: PrefillProgress | None
