"""`generate_batch`: replies to many prompts, several of them made together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from ..model.network import Exaone4ForCausalLM
from ..text.message import Reply
from ..text.tokenizer import Tokenizer
from .generate import GenerateOptions, Generation, stream_generate
from .options import check
from .request import Prompt
from .worker import MOST_TOGETHER, WAIT_SECONDS

if TYPE_CHECKING:
    from typing_extensions import Unpack


def generate_batch(
    model: Exaone4ForCausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = MOST_TOGETHER,
    each: Sequence[Mapping[str, Any]] | None = None,
    on_reply: Callable[[int, Reply], object] | None = None,
    cancel: threading.Event | None = None,
    **options: Unpack[GenerateOptions],
) -> list[Reply]:
    """The replies to `prompts`, in their order. Up to `batch_size` of them, 1 to 8, are made together.

    Options and errors are those of `stream_generate`. `each` has options for each prompt, which override the others;
    a seed that all prompts share gives each prompt the same random numbers. `on_reply(index, reply)` is called in the
    caller's thread as replies are complete. Once `cancel` is set, all replies end, with the reason "cancelled". An
    error of a reply, and an exception in the caller's thread such as KeyboardInterrupt, ends all others and is raised.
    Each prompt is checked before the first reply begins; the error names the prompt by its index.
    """
    fits = type(batch_size) is int and 1 <= batch_size <= MOST_TOGETHER
    check("batch_size", batch_size, fits, f"1 to {MOST_TOGETHER}")
    check("prompts", prompts, isinstance(prompts, (list, tuple)), "a list of prompts")
    check(
        "each", each, each is None or len(each) == len(prompts), f"None or {len(prompts)} mappings, one for each prompt"
    )
    generations = []
    for index, prompt in enumerate(prompts):
        own: dict[str, Any] = {**options, **(each[index] if each else {})}
        try:
            generations.append(stream_generate(model, tokenizer, prompt, **own))
        except (ValueError, TypeError) as error:
            raise type(error)(f"prompt {index}: {error}") from error
    with ThreadPoolExecutor(batch_size) as pool:
        waiting: dict[Future[Reply], int] = {pool.submit(made.whole): i for i, made in enumerate(generations)}
        replies: dict[int, Reply] = {}
        try:
            while waiting:
                ended, _ = wait(waiting, WAIT_SECONDS, FIRST_COMPLETED)
                for future in ended:
                    index = waiting.pop(future)
                    replies[index] = future.result()
                    if on_reply is not None:
                        on_reply(index, replies[index])
                if cancel is not None and cancel.is_set():
                    _cancel(generations)
        except BaseException:
            _cancel(generations)
            raise
    return [replies[index] for index in range(len(prompts))]


def _cancel(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.cancel()
