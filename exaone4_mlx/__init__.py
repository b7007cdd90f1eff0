"""EXAONE 4.0 on MLX: load a checkpoint, stream its replies.

    from exaone4_mlx import load, stream_generate
    model, tokenizer = load("demo")
    for event in stream_generate(model, tokenizer, "Hello"):
        print(event)

Names are imported when they are first used, so that a wrong platform or a `--help` costs nothing. In a notebook the
import registers rich display of replies, chats and figures with IPython.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` exports a name to type checkers
    from .cluster.ranks import join_ranks as join_ranks
    from .conversation.chat import Chat as Chat
    from .conversation.turn import Turn as Turn
    from .conversion.convert import ConversionSummary as ConversionSummary, convert as convert
    from .conversion.evaluate import evaluate as evaluate
    from .conversion.evaluation import Evaluation as Evaluation
    from .conversion.fuse import export_adapter as export_adapter, fuse as fuse
    from .files.safetensors import CheckpointError as CheckpointError
    from .files.text import decode_text as decode_text
    from .generation.batch import generate_batch as generate_batch
    from .generation.causal_lm import Exaone4ForCausalLM as Exaone4ForCausalLM, load as load
    from .generation.follow import follow as follow
    from .generation.generate import Generation as Generation, generate as generate, stream_generate as stream_generate
    from .generation.options import Options as Options, Sampling as Sampling
    from .generation.prefix_store import PrefixStore as PrefixStore
    from .generation.prompt_cache import PromptCache as PromptCache
    from .generation.reply_options import ReplyOptions as ReplyOptions
    from .measure.fit import Fit as Fit, fit as fit
    from .model.config import Exaone4Config as Exaone4Config
    from .model.generation_config import GenerationConfig as GenerationConfig
    from .model.heads import (
        Exaone4ForQuestionAnswering as Exaone4ForQuestionAnswering,
        Exaone4ForSequenceClassification as Exaone4ForSequenceClassification,
        Exaone4ForTokenClassification as Exaone4ForTokenClassification,
    )
    from .model.kv import KVQuantization as KVQuantization
    from .model.network import Exaone4Model as Exaone4Model
    from .storage.conversation import Conversation as Conversation
    from .storage.store import ConversationStore as ConversationStore
    from .text.events import Answer as Answer, Done as Done, Logprobs as Logprobs, Thinking as Thinking
    from .text.input_messages import check_messages as check_messages
    from .text.message import Reply as Reply
    from .text.reply import ReplyParser as ReplyParser
    from .text.tokenizer import Tokenizer as Tokenizer
    from .tools.builtin import BUILTIN_TOOLS as BUILTIN_TOOLS
    from .tools.call import ToolCall as ToolCall, ToolResult as ToolResult
    from .tools.load import load_tools as load_tools
    from .tools.mcp_server import load_mcp as load_mcp, mcp_servers as mcp_servers, mcp_tools as mcp_tools
    from .tuning.loop import TuningStep as TuningStep
    from .tuning.report import TuningResult as TuningResult
    from .tuning.tune import tune as tune

__version__ = "0.2.0"

_HOME = {
    "cluster.ranks": ("join_ranks",),
    "conversation.chat": ("Chat",),
    "conversation.turn": ("Turn",),
    "conversion.convert": ("ConversionSummary", "convert"),
    "conversion.evaluate": ("evaluate",),
    "conversion.evaluation": ("Evaluation",),
    "conversion.fuse": ("export_adapter", "fuse"),
    "files.safetensors": ("CheckpointError",),
    "files.text": ("decode_text",),
    "generation.batch": ("generate_batch",),
    "generation.causal_lm": ("Exaone4ForCausalLM", "load"),  # with the method `generate`
    "generation.follow": ("follow",),
    "generation.generate": ("Generation", "generate", "stream_generate"),
    "generation.options": ("Options", "Sampling"),
    "generation.reply_options": ("ReplyOptions",),
    "generation.prefix_store": ("PrefixStore",),
    "generation.prompt_cache": ("PromptCache",),
    "measure.fit": ("Fit", "fit"),
    "model.kv": ("KVQuantization",),
    "model.config": ("Exaone4Config",),
    "model.generation_config": ("GenerationConfig",),
    "model.heads": ("Exaone4ForQuestionAnswering", "Exaone4ForSequenceClassification", "Exaone4ForTokenClassification"),
    "model.network": ("Exaone4Model",),
    "storage.conversation": ("Conversation",),
    "storage.store": ("ConversationStore",),
    "text.events": ("Answer", "Done", "Logprobs", "Thinking"),
    "text.input_messages": ("check_messages",),
    "text.message": ("Reply",),
    "text.reply": ("ReplyParser",),
    "text.tokenizer": ("Tokenizer",),
    "tools.builtin": ("BUILTIN_TOOLS",),
    "tools.call": ("ToolCall", "ToolResult"),
    "tools.load": ("load_tools",),
    "tools.mcp_server": ("load_mcp", "mcp_servers", "mcp_tools"),
    "tuning.loop": ("TuningStep",),
    "tuning.report": ("TuningResult",),
    "tuning.tune": ("tune",),
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


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext exaone4_mlx` registers rich display, where the package was imported before IPython started."""
    from .notebook.register import register

    register(shell.display_formatter)


if (_shell := getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()) is not None:
    load_ipython_extension(_shell)
