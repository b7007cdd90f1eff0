"""EXAONE 4.0 on MLX: load a checkpoint, stream its replies.

    from exaone4_mlx import load, stream_generate
    model, tokenizer = load("demo")
    for event in stream_generate(model, tokenizer, "Hello"):
        print(event)

Names are imported when they are first used, so that a wrong platform or a `--help` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` exports a name to type checkers
    from .generation.conversation import Chat as Chat
    from .generation.ending import Options as Options
    from .generation.respond import (
        Done as Done,
        Generation as Generation,
        Logprobs as Logprobs,
        Reply as Reply,
        generate as generate,
        stream_generate as stream_generate,
    )
    from .generation.sampling import Sampling as Sampling
    from .generation.session import PromptCache as PromptCache
    from .generation.turn import Turn as Turn
    from .model.cache import KVQuantization as KVQuantization
    from .model.config import Exaone4Config as Exaone4Config
    from .model.files import CheckpointError as CheckpointError
    from .model.heads import (
        Exaone4ForQuestionAnswering as Exaone4ForQuestionAnswering,
        Exaone4ForSequenceClassification as Exaone4ForSequenceClassification,
        Exaone4ForTokenClassification as Exaone4ForTokenClassification,
    )
    from .model.network import Exaone4ForCausalLM as Exaone4ForCausalLM, Exaone4Model as Exaone4Model
    from .text.builtin_tools import BUILTIN_TOOLS as BUILTIN_TOOLS
    from .text.reply import Answer as Answer, ReplyParser as ReplyParser, Thinking as Thinking, ToolCall as ToolCall
    from .text.tokenizer import Tokenizer as Tokenizer
    from .text.toolbox import ToolResult as ToolResult
    from .tool_files import load_tools as load_tools
    from .weights.checkpoint import load as load
    from .weights.converter import Summary as Summary, convert as convert
    from .weights.evaluate import Evaluation as Evaluation, evaluate as evaluate
    from .weights.fit import Fit as Fit, fit as fit

__version__ = "0.1.0"

_HOME = {
    "generation.conversation": ("Chat",),
    "generation.ending": ("Options",),
    "generation.respond": ("Done", "Generation", "Logprobs", "Reply", "generate", "stream_generate"),
    "generation.sampling": ("Sampling",),
    "generation.session": ("PromptCache",),
    "generation.turn": ("Turn",),
    "model.cache": ("KVQuantization",),
    "model.config": ("Exaone4Config",),
    "model.files": ("CheckpointError",),
    "model.heads": ("Exaone4ForQuestionAnswering", "Exaone4ForSequenceClassification", "Exaone4ForTokenClassification"),
    "model.network": ("Exaone4ForCausalLM", "Exaone4Model"),
    "text.reply": ("Answer", "ReplyParser", "Thinking", "ToolCall"),
    "text.builtin_tools": ("BUILTIN_TOOLS",),
    "text.tokenizer": ("Tokenizer",),
    "text.toolbox": ("ToolResult",),
    "weights.checkpoint": ("load",),
    "tool_files": ("load_tools",),
    "weights.converter": ("Summary", "convert"),
    "weights.evaluate": ("Evaluation", "evaluate"),
    "weights.fit": ("Fit", "fit"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*sorted(_MODULE_OF), "__version__"]  # noqa: PLE0604 (all are strings)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
