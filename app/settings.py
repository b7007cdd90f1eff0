"""The settings of a conversation: the checked values of the settings widgets.

Notes:
- `temperature` and `top_p` None mean LG's recommendation for the mode. The widgets always show numbers.
- Settings are saved with a conversation. Invalid and obsolete values of a file are left out.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exaone4_mlx import Sampling

from .i18n import WORDS

#: The sampling options that the page offers: those with a label.
SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling) if field.name in WORDS)
WHOLE = ("max_tokens", "thinking_budget", "top_k", "seed")
MAX_TOKENS = 8192
#: The tools that may run, and whether the app asks before. The user or the command line sets them, never an imported
#: file.
PERMISSIONS = ("use_tools", "tools", "ask", "always")


@dataclass(frozen=True)
class Settings:
    """`thinking_budget` 0 sets no bound; `tools` are the names of those allowed, all while None.

    `always` are permissions (`tools.permission`) of tools that run without a question in this conversation.
    """

    system: str = ""
    thinking: bool = False
    thinking_budget: int = 0
    use_tools: bool = False
    tools: tuple[str, ...] | None = None
    ask: bool = True
    titles: bool = True  # the model makes the titles of conversations
    always: tuple[str, ...] = ()
    max_tokens: int = MAX_TOKENS
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    def allows(self, tool: str) -> bool:
        """Whether a tool of this name may be used."""
        return self.use_tools and (self.tools is None or tool in self.tools)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return dataclasses.asdict(self)

    def values(self) -> dict[str, Any]:
        """The settings by the names of the widgets, what LG recommends filled in."""
        sampling = self.sampling.resolved(self.thinking)
        return {**vars(self), **{name: getattr(sampling, name) for name in SAMPLING}}

    def updated(self, values: Mapping[str, Any]) -> Settings:
        """These settings with some of their `values()` changed. Raises ValueError for one without meaning."""
        own = {field.name for field in dataclasses.fields(self)} - {"sampling"}
        if unknown := sorted(set(values) - own - set(SAMPLING)):
            raise ValueError(f"there is no setting {unknown[0]!r}")
        given: dict[str, Any] = {
            name: _whole(name, value) if name in WHOLE else value for name, value in values.items()
        }
        if "tools" in given:
            given["tools"] = _names("tools", given["tools"])
        if "always" in given:
            given["always"] = _names("always", given["always"]) or ()
        made = dataclasses.replace(
            self,
            **{name: value for name, value in given.items() if name in own},
            sampling=dataclasses.replace(self.sampling, **{k: v for k, v in given.items() if k in SAMPLING}),
        )
        if not isinstance(made.system, str):
            raise ValueError("the system prompt must be a text")
        for name in ("thinking", "use_tools", "ask", "titles"):
            if not isinstance(getattr(made, name), bool):
                raise ValueError(f"{name} must be true or false, not {reprlib.repr(getattr(made, name))}")
        if made.max_tokens < 1 or made.thinking_budget < 0:
            raise ValueError("max_tokens must be at least 1, and thinking_budget at least 0")
        return made

    def restored(self, values: Mapping[str, Any]) -> Settings:
        """These settings with those values of a file that have a meaning."""
        settings = self
        flat = dict(values)
        sampling = flat.pop("sampling", None)
        if isinstance(sampling, Mapping):
            flat |= sampling
        for name, value in flat.items():
            try:
                settings = settings.updated({name: value})
            except (TypeError, ValueError, ArithmeticError):
                continue
        return settings

    def lasting(self) -> dict[str, Any]:
        """What a browser remembers for new conversations: all but the permissions."""
        return {name: value for name, value in self.as_dict().items() if name not in PERMISSIONS}

    def resumed(self, kept: Any) -> Settings:
        """These settings of the command line, and those that a browser remembers where they are the defaults."""
        mine, default = self.as_dict(), Settings().as_dict()
        given = kept if isinstance(kept, dict) else {}
        free = [name for name in given if name in Settings().lasting() and mine[name] == default[name]]
        return self.restored({name: given[name] for name in free})

    def options(self) -> dict[str, Any]:
        """The settings as options of `Chat.send`."""
        options: dict[str, Any] = {"thinking": self.thinking, "sampling": self.sampling, "max_tokens": self.max_tokens}
        if self.thinking and self.thinking_budget:
            options["thinking_budget"] = self.thinking_budget
        return options


def recommended(thinking: bool) -> tuple[float, float]:
    """LG's (temperature, top_p) for the mode."""
    sampling = Sampling().resolved(thinking)
    assert sampling.temperature is not None and sampling.top_p is not None
    return sampling.temperature, sampling.top_p


def _whole(name: str, value: Any) -> int | None:
    if value is None and name == "seed":
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or abs(value) >= (2**64 if name == "seed" else 2**53):
        raise ValueError(f"{name} must be a whole number, not {reprlib.repr(value)}")
    return int(value)


def _names(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} must be a list of names, not {reprlib.repr(value)}")
    return tuple(value)
