"""config.json -> one frozen `Exaone4Config`. It decides what each layer attends to.

Notes:
- A layer rotates its queries and keys if and only if it is local, or no window is set at all.
- Fields and their defaults are those of transformers' `Exaone4Config`.
- `config_keys.py` reads the spellings of a config.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..files.folders import atomic_file, find_folder, other_format, read_json, without_middle
from . import config_keys as keys
from .rope import ORIGINAL, RopeParameters

#: Fields about labels, training or outputs. They are written if they differ from the default.
OPTIONAL = (
    "id2label", "label2id", "problem_type", "classifier_dropout", "output_hidden_states", "output_attentions",
    "return_dict",
)  # fmt: skip
#: Fields that follow from each other. `dataclasses.replace` changes one and passes the old values of the others.
LINKED = (
    "rope_theta", "rope_scaling", "rope_parameters", "num_hidden_layers", "sliding_window", "sliding_window_pattern",
    "layer_types", "num_labels", "id2label", "label2id",
)  # fmt: skip
#: Fields that take effect at the next call of a network. A network is built from the others.
READ_PER_CALL = (
    "use_cache", "output_hidden_states", "output_attentions", "return_dict", "bos_token_id", "eos_token_id",
    "pad_token_id", "problem_type",
)  # fmt: skip
_DERIVED: Any = None  # the default of a field that follows from other fields; it is never None after construction


class LayerAttention(NamedTuple):
    """What one layer attends to: the last `window` tokens (None: all). `rope`: whether it rotates queries and keys."""

    window: int | None
    rope: bool


@dataclass(frozen=True)
class Exaone4Config:
    """An EXAONE 4 architecture. Sizes are in elements, lengths in tokens.

    `rope_parameters` is a mapping, as in transformers 5. `rope_theta` and `rope_scaling` are transformers 4's spelling
    of the same. All three are set after construction. `sliding_window_pattern` is "LLLG", 4 or None. It has no effect
    beside `layer_types`. If both are absent, no layer has a window, and `sliding_window` becomes None. `num_labels` is
    the size of `id2label`, for the classification heads. `return_dict` False makes `forward` return tuples.

    A config does not change: `replace(**changes)` makes another one. Only `update` works in place.
    Raises ValueError that names the key, for invalid or contradictory values.
    Source: transformers' documentation of EXAONE 4.
    """

    model_type: ClassVar[str] = "exaone4"

    vocab_size: int = 102_400
    hidden_size: int = 4096
    intermediate_size: int = _DERIVED  # 4 * hidden_size
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = _DERIVED  # num_attention_heads
    head_dim: int = _DERIVED  # hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | Sequence[int] | None = 2
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    rope_theta: float = _DERIVED  # 10,000
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    rope_parameters: RopeParameters = _DERIVED
    attention_dropout: float = 0.0
    sliding_window: int | None = 4096
    sliding_window_pattern: str | int | None = 4
    layer_types: tuple[str, ...] = _DERIVED  # from the pattern
    num_labels: int = _DERIVED  # 2
    id2label: Mapping[int, str] = field(default=_DERIVED, hash=False)  # LABEL_0, …
    label2id: Mapping[str, int] = field(default=_DERIVED, hash=False)  # id2label, inverted
    problem_type: str | None = None
    classifier_dropout: float = 0.1
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    _linked: tuple[Any, ...] | None = field(default=None, repr=False, compare=False)  # the values of LINKED, once read

    def __post_init__(self) -> None:
        for name, before in zip(LINKED, self._linked or (), strict=False):
            if getattr(self, name) != before:
                raise ValueError(f"other fields of a config follow from {name}: use config.replace({name}=…)")
        self._set(**keys.read_sizes(self))
        if isinstance(self.eos_token_id, Sequence):
            self._set(eos_token_id=tuple(self.eos_token_id))
        keys.check_values(self)
        rope: Any = self.rope_parameters
        if not isinstance(rope, RopeParameters):
            rope = keys.read_rope(rope, self.rope_scaling, self.rope_theta, self.max_position_embeddings)
        rope.check_head_dim(self.head_dim)
        types = keys.read_layer_types(
            self.layer_types, self.sliding_window_pattern, self.sliding_window, self.num_hidden_layers
        )
        if not self.layer_types and not self.sliding_window_pattern:
            self._set(sliding_window=None)
        names, numbers = keys.read_labels(self.num_labels, self.id2label, self.label2id)
        self._set(rope_parameters=rope, rope_theta=rope.rope_theta, rope_scaling=rope.scaling() or None)
        self._set(layer_types=types, num_labels=len(names), id2label=names, label2id=numbers)
        self._set(_linked=tuple(getattr(self, name) for name in LINKED))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        kinds = ", ".join(
            f"{count} {'global' if layer.window is None else f'local ({layer.window:,} tokens)'}"
            for layer, count in Counter(self.layers).items()
        )
        return (
            f"Exaone4Config({self.num_hidden_layers} layers: {kinds}; hidden_size={self.hidden_size}, "
            f"vocab_size={self.vocab_size}, max_position_embeddings={self.max_position_embeddings})"
        )

    @property
    def layers(self) -> tuple[LayerAttention, ...]:
        """What each layer attends to, in order."""
        if self.sliding_window is None:
            return (LayerAttention(None, True),) * self.num_hidden_layers
        # Global layers of a hybrid model have no position encoding on purpose ("NoPE"). Adding RoPE to
        # them cost the 32B model 18 points of AIME in another project (vLLM, pull request 23918).
        return tuple(
            LayerAttention(self.sliding_window, True) if kind == keys.LOCAL else LayerAttention(None, False)
            for kind in self.layer_types
        )

    @property
    def stop_token_ids(self) -> frozenset[int]:
        ids = self.eos_token_id
        return frozenset(() if ids is None else (ids,) if isinstance(ids, int) else ids)

    def vocabulary_warning(self, tokenizer_size: int) -> str | None:
        """A warning for a tokenizer that has more tokens than the model, or None."""
        if tokenizer_size <= self.vocab_size:
            return None
        return (
            f"the tokenizer knows {tokenizer_size} tokens, the model {self.vocab_size}: "
            "text that uses the others cannot be processed"
        )

    def replace(self, **changes: Any) -> Exaone4Config:
        """Another config with these fields. Fields that follow from them follow: `replace(rope_theta=1e6)`.

        A new base keeps the RoPE scaling, and a new scaling keeps the base. Raises ValueError for an unknown field, for
        changes that contradict each other, and for a window or a pattern that would have no effect.
        """
        keys.refuse_unknown(changes, NAMES)
        values = self.to_dict()
        if (
            "num_hidden_layers" not in changes
        ):  # keep the spelling; for more layers, the pattern of those that are there
            values["sliding_window_pattern"] = self.sliding_window_pattern
        if "sliding_window" in changes and None in (self.sliding_window, changes["sliding_window"]):
            del values["layer_types"]
        config = self.from_dict(keys.with_changes(values, self.rope_parameters, self.num_labels, changes))
        for name, other in (("sliding_window", "sliding_window_pattern"), ("sliding_window_pattern", "sliding_window")):
            if changes.get(name) and config.sliding_window is None:
                raise ValueError(f"{name} has no effect here without {other}; change both")
        pattern, types = changes.get("sliding_window_pattern"), changes.get("layer_types")
        if pattern and types and config.layer_types != config.replace(sliding_window_pattern=pattern).layer_types:
            raise ValueError(f"sliding_window_pattern {pattern!r} contradicts layer_types; change one of them")
        return config

    def update(self, values: Mapping[str, Any]) -> None:
        """transformers' `update`: changes this config in place, as `replace` does.

        Raises ValueError for a field from which a network with this config is built.
        """
        changed = self.replace(**values)
        fixed = [name for name in values if name not in READ_PER_CALL]
        if fixed and self.__dict__.get("_in_use"):
            raise ValueError(
                f"a model is built with this {fixed[0]}; make a model of another config, "
                f"config.replace({fixed[0]}=…), or load it with from_pretrained(…, {fixed[0]}=…)"
            )
        self._set(**{item.name: getattr(changed, item.name) for item in fields(self)})

    def mark_in_use(self) -> None:
        """From here on `update` changes only what networks read in each call."""
        self._set(_in_use=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Exaone4Config:
        """Reads the contents of a config.json of any transformers version.

        Raises ValueError for another `model_type`, and for any setting that would change the numbers
        and is not implemented. Other keys (`architectures`, `torch_dtype`, …) are ignored.
        """
        keys.check_architecture(values)
        known = {name: values[name] for name in NAMES if name in values}
        if known.get("classifier_dropout") is None:  # the fallback of transformers' heads
            hidden = values.get("hidden_dropout")
            known["classifier_dropout"] = cls.classifier_dropout if hidden is None else hidden
        config = cls(**known)
        length = config.rope_parameters.original_max_position_embeddings
        if values.get(ORIGINAL) not in (None, length):
            raise ValueError(f"{ORIGINAL} is {values[ORIGINAL]!r}, but {length} in the RoPE parameters")
        return config

    @classmethod
    def from_file(cls, path: Path, **changes: Any) -> Exaone4Config:
        """Reads a config.json. Errors name the file; FileNotFoundError names its folder."""
        if not path.is_file():
            hint = other_format(path.parent) if path.parent.is_dir() else ""
            raise FileNotFoundError(f"{path.parent} has no config.json: it is not a model folder{hint}")
        keys.refuse_unknown(changes, NAMES)
        try:
            config = cls.from_dict(read_json(path))
            return config.replace(**changes) if changes else config
        except (ValueError, TypeError) as error:
            raise ValueError(without_middle(f"{path}: {error}")) from error

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, *, revision: str | None = None, **changes: Any) -> Exaone4Config:
        """The config of a folder, a config.json, a hub id (nothing else is downloaded), or "demo".

        `changes` replace fields of the file: `num_labels=3`. Raises FileNotFoundError, and ValueError that names file
        and key.
        """
        path = Path(path_or_repo).expanduser()
        if path.is_file():
            return cls.from_file(path, **changes)
        return cls.from_file(find_folder(path_or_repo, revision, ("config.json",)) / "config.json", **changes)

    def to_dict(self) -> dict[str, Any]:
        """The config in every spelling at once, so that transformers of any age and mlx-lm read it.

        `rope_scaling` and `rope_theta` are written with `rope_parameters`, and `layer_types` with a pattern, which is
        a string of one letter per layer if it does not repeat. (mlx-lm supports neither `dynamic` RoPE nor a window in
        a model whose layers are all alike.)
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in NAMES}
        del values["num_labels"]  # redundant beside id2label
        default = Exaone4Config(num_hidden_layers=1)
        for name in OPTIONAL:
            if values[name] == getattr(default, name):
                del values[name]
        rope = self.rope_parameters
        values |= {
            "architectures": ["Exaone4ForCausalLM"],
            "model_type": self.model_type,
            "rope_parameters": {"rope_type": "default", "rope_theta": rope.rope_theta} | rope.scaling(),
            "sliding_window_pattern": None if self.sliding_window is None else keys.shortest_pattern(self.layer_types),
            "layer_types": list(self.layer_types),
        }
        if isinstance(self.eos_token_id, Sequence):
            values["eos_token_id"] = list(self.eos_token_id)
        return values

    def to_json_string(self) -> str:
        """`to_dict` as JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, folder: str | Path, **more: Any) -> None:
        """Writes config.json, with `more` keys, into a folder, which is created if it does not exist.

        transformers and mlx-lm read it.
        """
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / "config.json") as stream:
            stream.write((json.dumps(self.to_dict() | more, indent=2) + "\n").encode())


NAMES = tuple(item.name for item in fields(Exaone4Config) if not item.name.startswith("_"))
