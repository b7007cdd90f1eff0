"""The options of a reply: one flat list, from which command-line flags, settings and help texts are derived.

Notes:
- `Options` is the only list. `ReplyOptions` (reply_options.py) repeats its names and types for type checkers; a test
  compares the two.
- `option(...)` puts the help text, the flags and more into the metadata of a field. Flags are spelled as in mlx-lm.
- `sampling=Sampling(temperature=0)` means the same as `temperature=0`: `Sampling` is a group of the fields.
- This module imports no MLX, so that `--help` costs nothing.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .formats import read_format
from .names import refuse_unknown

#: (prompt tokens processed, all prompt tokens) -> None
PrefillProgress = Callable[[int, int], None]
#: (tokens [N], logits [1, V]) -> logits [1, V], as in mlx-lm
LogitsProcessor = Callable[[Any, Any], Any]

MAX_TOKENS = 8192  # of a reply, thought included: enough for a long thought, an end for a loop
PREFILL_STEP_SIZE = 2048  # tokens; mlx-lm's default


def check(name: str, value: object, holds: bool, meaning: str) -> None:
    """Raises ValueError for a value of `name` that is not `meaning`."""
    if not holds:
        raise ValueError(f"{name} must be {meaning}, not {value!r}")


def option(default: Any, help: str, type: type, *flags: str, group: str = "sampling", kept: bool = True) -> Any:
    """A field with what a user interface needs to know about it, in its metadata.

    `flags` are empty for an option that only Python has. `type` is the type of one value; bool means a switch, and dict
    an object in JSON.
    `kept` says whether a saved chat keeps the option.
    """
    metavar = {float: "X", int: "N", str: "TEXT", dict: "JSON"}.get(type)
    known = {"help": help, "flags": flags, "type": type, "metavar": metavar, "group": group, "kept": kept}
    return dataclasses.field(default=default, metadata=known)


#: The fields of `Sampling` that are floats.
#: Logits are float32, which ends at 3.4e38 and holds no normal number below 1.2e-38. Penalties are added up, and
#: multiplied by counts.
SMALLEST, LARGEST = 1.2e-38, 1e30
#: name -> (least, most, in words) of the numbers of `Sampling`
RANGES = {
    "temperature": (SMALLEST, LARGEST, "0 or more (float32 takes 1.2e-38 to 1e30)"),
    "top_p": (SMALLEST, 1, "above 0 and at most 1 (float32 takes 1.2e-38 and more)"),
    "min_p": (0, 1, "from 0 to 1"),
    "presence_penalty": (-LARGEST, LARGEST, "a finite number (float32 takes -1e30 to 1e30)"),
    "frequency_penalty": (-LARGEST, LARGEST, "a finite number (float32 takes -1e30 to 1e30)"),
    "repetition_penalty": (1 / LARGEST, LARGEST, "above 0 (float32 takes 1e-30 to 1e30)"),
    "xtc_probability": (0, 1, "from 0 to 1"),
    "xtc_threshold": (0, 0.5, "from 0 to 0.5"),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. None means LG's recommendation for the mode: temperature 0.6 and top_p 0.95 with a
    thought, temperature 0.1 without one.

    `temperature` 0 takes the most probable token. `top_k` 0, `top_p` 1 and `min_p` 0 exclude no token.
    `logit_bias` is added to the logits, by token id (a number, or a text as JSON has it). With the probability
    `xtc_probability`, a token is sampled without the most probable ones: of the tokens above `xtc_threshold` the least
    probable stays, as in mlx-lm. `seed` None takes a seed from the operating system. Raises ValueError for an invalid
    value.
    """

    temperature: float | None = option(None, "temperature; 0 takes the most probable token", float, "--temp")
    top_p: float | None = option(None, "sample from the fewest tokens with a total probability of X", float, "--top-p")
    top_k: int = option(0, "sample from the N most probable tokens", int, "--top-k")
    min_p: float = option(0.0, "sample from tokens at least X times as probable as the best", float, "--min-p")
    presence_penalty: float = option(0.0, "LG recommends 1.5 against repetition", float, "--presence-penalty")
    frequency_penalty: float = option(0.0, "penalty per occurrence in the reply", float, "--frequency-penalty")
    repetition_penalty: float = option(
        1.0, "above 1: against tokens of prompt and reply", float, "--repetition-penalty"
    )
    xtc_probability: float = option(0.0, "how often XTC excludes the best tokens", float, "--xtc-probability")
    xtc_threshold: float = option(
        0.1, "XTC excludes tokens of a probability above X, except the last", float, "--xtc-threshold"
    )
    seed: int | None = option(None, "the same seed gives the same reply", int, "--seed")
    logit_bias: Mapping[int, float] | None = option(
        None, 'added to the logits, by token id: {"123": -5}', dict, "--logit-bias"
    )

    def __post_init__(self) -> None:
        bias = {} if self.logit_bias is None else self.logit_bias
        check("logit_bias", bias, isinstance(bias, Mapping) and all(map(_is_bias, bias.items())), "numbers by token id")
        if any(isinstance(token, str) for token in bias):
            object.__setattr__(self, "logit_bias", {int(token): value for token, value in bias.items()})
        check("top_k", self.top_k, isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 or more")
        for name, (least, most, words) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("temperature", "top_p"):
                continue
            check(name, value, _is_number(value), "a number")
            check(name, value, least <= value <= most or (name == "temperature" and value == 0), words)
        whole = isinstance(self.seed, int) and 0 <= self.seed < 2**64
        check("seed", self.seed, self.seed is None or whole, "a whole number from 0 to 2**64 - 1")

    def resolved(self, thinking: bool) -> Sampling:
        """The same, with LG's recommendation for the mode in place of None (README of EXAONE 4.0)."""
        temperature, top_p = (0.6, 0.95) if thinking else (0.1, 1.0)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)}
        values["temperature"] = temperature if self.temperature is None else self.temperature
        values["top_p"] = top_p if self.top_p is None else self.top_p
        return Sampling(**values)


SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(Sampling))
LEAST = {
    "max_tokens": 1, "min_tokens": 0, "prefill_step_size": 1, "thinking_budget": 0, "num_draft_tokens": 1,
    "logprobs": 0,
}  # fmt: skip
#: Arguments of `apply_chat_template` that follow from the prompt and from other options.
FIXED_ARGS = {
    "messages", "tools", "add_generation_prompt", "continue_final_message", "enable_thinking", "tokenize", "padding",
    "return_dict", "return_tensors",
}  # fmt: skip
SWITCHES = ("thinking", "continue_final_message", "constrain_tools", "stop_on_repetition", "prompt_lookup")


@dataclass(frozen=True, kw_only=True)
class Options(Sampling):
    """How one reply is made: what `Sampling` has, and limits, thinking, tools, speculation. Raises ValueError.

    `thinking` lets the model think first, for at most `thinking_budget` tokens; None sets no limit. `max_tokens`
    limits thought and answer together; None means 8,192. Before `min_tokens` tokens no stop token is sampled, and no
    stop string ends the answer. `stop` ends the answer before a text, and `extra_eos_token` ends the reply at a token,
    given as its text or its id. `prefill_response` is the beginning of the answer, which the reply continues.
    `continue_final_message` continues the last message, an assistant's: `max_tokens` and `min_tokens` count the new
    tokens; penalties, stop strings, `thinking_budget` and `seed` go on as in one reply.
    `chat_template_args` are variables of the chat template. `response_format` (formats.py) forces the answer into a
    format: OpenAI's json_object or json_schema, a grammar or a regex. `logits_processors` are functions of all tokens
    [N] and the logits [1, V] that return logits, as in mlx-lm. They come first, and must keep no state.
    `stop_on_repetition` ends a reply that only repeats itself. `constrain_tools` forces tool calls to follow their
    schemas.
    `progress(done, total)` is called during the prefill, in the thread that does the model's work.

    `prompt_lookup` drafts tokens that followed the same tokens before; the model checks them, so the reply is the
    same, in fewer steps where it repeats the prompt. `num_draft_tokens` limits how many tokens `prompt_lookup` (8 by
    default) or a draft model (4) proposes at once. `logprobs` gives the log-probability of every sampled token, and
    those of that number of most probable tokens.
    """

    thinking: bool = option(False, "let the model think first (default: no)", bool, "--thinking", group="thinking")
    thinking_budget: int | None = option(
        None, "end the thought after N tokens; the answer always follows", int, "--thinking-budget", group="thinking"
    )
    max_tokens: int | None = option(None, "limit of thought and answer (default: 8192)", int, "-m", "--max-tokens")
    min_tokens: int = option(0, "do not end thought and answer before N tokens", int, "--min-tokens")
    stop: str | Sequence[str] | None = option(
        (), "end the answer before TEXT; may be repeated", str, "--stop", group="", kept=False
    )
    extra_eos_token: str | int | Sequence[str | int] | None = option(
        (), "end the reply at this token, too", str, "--extra-eos-token", group="", kept=False
    )
    prefill_response: str | None = option(
        None, "TEXT begins the answer, and the reply continues it", str, "--prefill-response", group="", kept=False
    )
    continue_final_message: bool = option(
        False, "continue the last message, the assistant's", bool, "--continue", group="", kept=False
    )
    chat_template_args: Mapping[str, Any] | None = option(
        None, 'variables of the chat template: {"skip_think": false}', dict, "--chat-template-args",
        "--chat-template-config", group="", kept=False,
    )  # fmt: skip
    response_format: Any = option(None, "the format of the answer, as OpenAI writes it", object, kept=False)
    logits_processors: Sequence[LogitsProcessor] = option((), "functions (tokens, logits)", object, kept=False)
    stop_on_repetition: bool = option(
        True, "end a reply that only repeats itself (default: yes)", bool, "--stop-on-repetition", kept=False
    )
    constrain_tools: bool = option(
        False, "force tool calls to follow the tools' schemas", bool, "--constrain-tools", group="tools"
    )
    prompt_lookup: bool = option(
        False, "draft what followed the same words before", bool, "--prompt-lookup", group="speculation", kept=False
    )
    num_draft_tokens: int | None = option(
        None, "draft at most N tokens at once", int, "--num-draft-tokens", group="speculation", kept=False
    )
    logprobs: int | None = option(
        None, "log-probability of each token and of the N best", int, "--logprobs", group="output", kept=False
    )
    prefill_step_size: int = option(
        PREFILL_STEP_SIZE, "prompt tokens per chunk", int, "--prefill-step-size", kept=False
    )
    progress: PrefillProgress | None = option(None, "called with (done, total) in the prefill", object, kept=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in LEAST.items():
            limit = getattr(self, name)
            whole = isinstance(limit, int) and not isinstance(limit, bool) and limit >= least
            optional = limit is None and name not in ("prefill_step_size", "min_tokens")
            check(name, limit, whole or optional, f"a whole number of at least {least}")
        for name in SWITCHES:
            check(name, getattr(self, name), isinstance(getattr(self, name), bool), "true or false")
        check("progress", self.progress, self.progress is None or callable(self.progress), "a function (done, total)")
        if not all(isinstance(text, str) and text for text in self.stops):
            raise ValueError(f"stop strings must be texts of at least one character, not {list(self.stops)!r}")
        whole = all(type(token) in (str, int) and token != "" for token in self.extra_eos_tokens)
        check("extra_eos_token", self.extra_eos_token, whole, "the text or the id of a token, or several")
        prefill, variables = self.prefill_response, self.chat_template_args or {}
        is_text = isinstance(prefill, str) and prefill.strip() != ""
        check("prefill_response", prefill, prefill is None or is_text, "the text that begins the answer")
        if prefill is not None and self.thinking:
            raise ValueError("prefill_response begins the answer, and a thought comes before it: use one of them")
        if prefill is not None and self.continue_final_message:
            raise ValueError("prefill_response begins a new reply, and continue_final_message continues one: use one")
        named = isinstance(variables, Mapping) and all(isinstance(name, str) for name in variables)
        check("chat_template_args", variables, named, "values by name")
        if fixed := sorted(FIXED_ARGS & variables.keys()):
            raise ValueError(f"chat_template_args sets variables of the chat template only, not {fixed[0]!r}")
        if self.response_format is not None and read_format(self.response_format) is not None:
            for name in ("constrain_tools", "min_tokens"):
                if getattr(self, name) not in (False, 0):
                    raise ValueError(f"response_format decides the whole answer: it cannot be combined with {name}")
        functions = isinstance(self.logits_processors, Sequence) and all(map(callable, self.logits_processors))
        check("logits_processors", self.logits_processors, functions, "a list of functions (tokens, logits)")
        if self.min_tokens > self.reply_limit:
            raise ValueError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.reply_limit}")

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = {field.name for field in dataclasses.fields(self) if values[field.name] != field.default}
        return f"Options({', '.join(f'{name}={value!r}' for name, value in values.items() if name in changed)})"

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return _listed(self.stop)

    @property
    def extra_eos_tokens(self) -> tuple[str | int, ...]:
        """The texts and ids of further stop tokens."""
        return _listed(self.extra_eos_token)

    @property
    def reply_limit(self) -> int:
        """`max_tokens`, or its default."""
        return MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @classmethod
    def read(cls, given: Mapping[str, Any], base: Options | None = None, also: Collection[str] = ()) -> Options:
        """Options from keyword arguments, `sampling` among them; `base` has the values that are not given.

        Raises TypeError for an unknown name, with what may have been meant (`also` are further names that the
        caller takes), and ValueError for an invalid value or one that is given twice.
        """
        base = base or cls()
        refuse_unknown(given, (*OPTION_NAMES, "sampling", *also))
        values = {name: value for name, value in given.items() if name != "sampling"}
        sampling, group = given.get("sampling"), dict[str, Any]()
        if sampling is not None:
            if not isinstance(sampling, Sampling):
                raise ValueError(f"sampling must be a Sampling, not {type(sampling).__name__}")
            group = {name: getattr(sampling, name) for name in SAMPLING_FIELDS}
            if twice := [name for name in SAMPLING_FIELDS if name in values and group[name] != getattr(cls, name)]:
                raise ValueError(f"{twice[0]} is given twice: by itself and in sampling=Sampling(…)")
        return dataclasses.replace(base, **(group | values))


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(Options))


def _listed(value: Any) -> tuple[Any, ...]:
    """None, one value or several values as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _is_bias(item: tuple[object, object]) -> bool:
    """Whether a token id and a number; minus infinity excludes a token."""
    token, value = item
    is_id = type(token) is int or (isinstance(token, str) and token.isascii() and token.isdigit())
    return is_id and _is_number(value) and (abs(value) <= LARGEST or value == -math.inf)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    """Whether a number that a float can hold. Infinities and nan can be held."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)
