"""config.json -> one frozen `Exaone4Config`; what each layer attends to is decided here, once.

What is peculiar here:
- Four spellings are read: RoPE as `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters`
  (transformers 5), each with or without `layer_types`.
- A layer rotates its queries and keys if and only if it is local, or no window is set at all.
- Fields and their defaults are those of transformers' `Exaone4Config`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..files.folders import atomic_file, find_folder, read_json
from .rope import ORIGINAL, RopeParameters

LOCAL, GLOBAL = "sliding_attention", "full_attention"

#: Keys of other architectures that would change the numbers. Set to anything but None, False or 0 they are refused.
FOREIGN_KEYS = (
    "attention_bias",
    "mlp_bias",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_nextn_predict_layers",
    "logit_scale",
    "logits_scaling",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "text_config",
    "vision_config",
)
#: Keys that must be positive whole numbers.
COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
#: The fields that say something about labels, training or outputs. They are written where they are not the default.
SELDOM = (
    "id2label",
    "label2id",
    "problem_type",
    "classifier_dropout",
    "output_hidden_states",
    "output_attentions",
)
_NOT_GIVEN: Any = None  # a field that is worked out from the others, and always set after construction


class LayerAttention(NamedTuple):
    """What one layer attends to: `window` in tokens (None: everything), and whether it rotates queries and keys."""

    window: int | None
    rope: bool


@dataclass(frozen=True)
class Exaone4Config:
    """An EXAONE 4 architecture. Sizes are in elements, lengths in tokens.

    `rope_parameters` is a mapping as transformers 5 has it; `rope_theta` and `rope_scaling` are transformers 4's
    spelling of the same, and all three are set after construction. `sliding_window_pattern` is "LLLG", 4 or None.
    `layer_types`, where given, are never altered, and the pattern then says nothing; without them, no pattern means
    that no layer has a window, and `sliding_window` becomes None. `num_labels` counts `id2label`, for the
    classification heads.
    Raises ValueError, naming the key, for values that are no such thing or contradict each other.
    Source: transformers' documentation of EXAONE 4.
    """

    model_type: ClassVar[str] = "exaone4"

    vocab_size: int = 102_400
    hidden_size: int = 4096
    intermediate_size: int = _NOT_GIVEN  # 4 * hidden_size
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = _NOT_GIVEN  # num_attention_heads
    head_dim: int = _NOT_GIVEN  # hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | Sequence[int] | None = 2
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    rope_theta: float = _NOT_GIVEN  # 10,000
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    rope_parameters: RopeParameters = _NOT_GIVEN
    attention_dropout: float = 0.0
    sliding_window: int | None = 4096
    sliding_window_pattern: str | int | None = 4
    layer_types: tuple[str, ...] = _NOT_GIVEN  # from the pattern
    num_labels: int = _NOT_GIVEN  # 2
    id2label: Mapping[int, str] = field(default=_NOT_GIVEN, hash=False)  # LABEL_0, …
    label2id: Mapping[str, int] = field(default=_NOT_GIVEN, hash=False)  # id2label, turned round
    problem_type: str | None = None
    classifier_dropout: float = 0.1
    output_hidden_states: bool = False
    output_attentions: bool = False

    def __post_init__(self) -> None:
        self._set_sizes()
        self._check_numbers()
        self._set_rope()
        self._set_layers()
        self._set_labels()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _set_sizes(self) -> None:
        for name in ("hidden_size", "num_attention_heads"):
            _check_count(name, getattr(self, name))
        defaults = {"intermediate_size": 4 * self.hidden_size, "num_key_value_heads": self.num_attention_heads}
        for name, value in defaults.items():
            self._set(name, value if getattr(self, name) is None else getattr(self, name))
        for name in COUNTS:
            _check_count(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        head_dim: Any = self.head_dim
        if head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                    f"{self.num_attention_heads}, and head_dim is not given"
                )
            self._set("head_dim", self.hidden_size // self.num_attention_heads)
        _check_count("head_dim", self.head_dim)
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, and RoPE rotates pairs")
        if self.sliding_window is not None:
            _check_count("sliding_window", self.sliding_window)

    def _check_numbers(self) -> None:
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act {self.hidden_act!r} is not implemented; EXAONE 4 uses 'silu'")
        for name in ("rms_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < math.inf or (name == "rms_norm_eps" and not value):
                raise ValueError(f"{name} must be a positive number, not {value!r}")
        for name in ("attention_dropout", "classifier_dropout"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise ValueError(f"{name} must be a number from 0 to below 1, not {value!r}")
        for name in ("use_cache", "tie_word_embeddings", "output_hidden_states", "output_attentions"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if isinstance(self.eos_token_id, Sequence):
            self._set("eos_token_id", tuple(self.eos_token_id))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = getattr(self, name)
            for token in ids if name == "eos_token_id" and isinstance(ids, tuple) else (ids,):
                if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
                    raise ValueError(f"{name} must be a token id, not {ids!r}")

    def _set_rope(self) -> None:
        rope: Any = self.rope_parameters
        if not isinstance(rope, RopeParameters):
            rope = _read_rope(rope, self.rope_scaling, self.rope_theta, self.max_position_embeddings)
        rope.check_head_dim(self.head_dim)
        self._set("rope_parameters", rope)
        self._set("rope_theta", rope.rope_theta)
        self._set("rope_scaling", rope.scaling() or None)

    def _set_layers(self) -> None:
        types: Any = self.layer_types
        if not types:
            types = self._types_from_pattern()
            if not self.sliding_window_pattern:
                self._set("sliding_window", None)
        if isinstance(types, str) or not isinstance(types, Sequence):
            raise ValueError(f"layer_types must be a list with one name for each layer, not {types!r}")
        if len(types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(types)} entries for {self.num_hidden_layers} layers")
        if unknown := [kind for kind in types if kind not in (LOCAL, GLOBAL)]:
            raise ValueError(f"layer_types knows {LOCAL!r} and {GLOBAL!r}, not {unknown[0]!r}")
        self._set("layer_types", tuple(types))

    def _set_labels(self) -> None:
        count: Any = self.num_labels
        names: Any = self.id2label
        numbers: Any = self.label2id
        if names is None:
            count = 2 if count is None else count
            _check_count("num_labels", count)
            names = {i: f"LABEL_{i}" for i in range(count)}
        if not isinstance(names, Mapping) or not all(
            str(key).isdecimal() and isinstance(name, str) for key, name in names.items()
        ):
            raise ValueError(f"id2label must map 0, 1, … to names, not be {names!r}")
        names = {int(key): name for key, name in names.items()}
        if not names or sorted(names) != list(range(len(names))):
            raise ValueError(f"id2label must name the labels from 0 on, each once, and names {sorted(names)}")
        if count not in (None, len(names)):
            raise ValueError(f"num_labels is {count!r}, but id2label names {len(names)}")
        if numbers is None:
            numbers = {name: i for i, name in names.items()}
        if not isinstance(numbers, Mapping) or not all(
            isinstance(number, int) and number in names for number in numbers.values()
        ):
            raise ValueError(f"label2id must map names to labels from 0 to {len(names) - 1}, not be {numbers!r}")
        self._set("id2label", names)
        self._set("label2id", dict(numbers))
        self._set("num_labels", len(names))
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {self.problem_type!r}")

    def _types_from_pattern(self) -> tuple[str, ...]:
        pattern = self.sliding_window_pattern
        if isinstance(pattern, bool) or not isinstance(pattern, (str, int, type(None))):
            raise ValueError(f"sliding_window_pattern must be a string of L and G, a whole number or null: {pattern!r}")
        if isinstance(pattern, str) and (not pattern or set(pattern) - {"L", "G"}):
            raise ValueError(f"sliding_window_pattern {pattern!r} must consist of the letters L and G")
        if isinstance(pattern, int) and pattern < 0:
            raise ValueError(f"sliding_window_pattern {pattern} must not be negative")
        if self.sliding_window is None or not pattern:
            return (GLOBAL,) * self.num_hidden_layers
        if isinstance(pattern, int):
            pattern = "L" * (pattern - 1) + "G"
        types = [LOCAL if pattern[i % len(pattern)] == "L" else GLOBAL for i in range(self.num_hidden_layers)]
        # The documentation says that the final layer is global whatever the pattern. transformers' code
        # (5.23, configuration_exaone4.py) leaves that out; no released model can tell them apart.
        types[-1] = GLOBAL
        return tuple(types)

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
        """What each layer attends to, first layer first."""
        if self.sliding_window is None:
            return (LayerAttention(None, True),) * self.num_hidden_layers
        # Global layers of a hybrid model have no position encoding on purpose ("NoPE"). Adding RoPE to
        # them cost the 32B model 18 points of AIME in another project (vLLM, pull request 23918).
        return tuple(
            LayerAttention(self.sliding_window, True) if kind == LOCAL else LayerAttention(None, False)
            for kind in self.layer_types
        )

    @property
    def stop_token_ids(self) -> frozenset[int]:
        ids = self.eos_token_id
        return frozenset(() if ids is None else (ids,) if isinstance(ids, int) else ids)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Exaone4Config:
        """Reads the contents of a config.json of any transformers version.

        Raises ValueError for another `model_type`, and for any setting that would change the numbers
        and is not implemented. Bookkeeping keys (`architectures`, `torch_dtype`, …) are passed over.
        """
        if values.get("model_type") != "exaone4":
            raise ValueError(f"not an EXAONE 4 model: model_type is {values.get('model_type')!r}, not 'exaone4'")
        if values.get("partial_rotary_factor") not in (None, 1):
            raise ValueError("partial_rotary_factor other than 1 is not part of EXAONE 4")
        if foreign := [key for key in FOREIGN_KEYS if values.get(key)]:
            raise ValueError(f"{foreign[0]} = {values[foreign[0]]!r} is not part of EXAONE 4 and is not implemented")
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        if known.get("classifier_dropout") is None:  # as transformers' heads read it
            hidden = values.get("hidden_dropout")
            known["classifier_dropout"] = cls.classifier_dropout if hidden is None else hidden
        config = cls(**known)
        if (beside := values.get(ORIGINAL)) not in (
            None,
            inside := config.rope_parameters.original_max_position_embeddings,
        ):
            raise ValueError(f"{ORIGINAL} {beside!r} stands outside of the RoPE parameters, which say {inside}")
        return config

    @classmethod
    def from_file(cls, path: Path, **changes: Any) -> Exaone4Config:
        """Reads a config.json; errors name the file, and FileNotFoundError its folder."""
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} has no config.json: it is not a model folder")
        if unknown := sorted(set(changes) - {item.name for item in fields(cls)}):
            raise ValueError(f"a config has no {unknown[0]}")
        try:
            values = read_json(path)
            return cls.from_dict(_changed(values, cls.from_dict(values), changes) if changes else values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, *, revision: str | None = None, **changes: Any) -> Exaone4Config:
        """The config of a folder, a config.json, a hub id (of which nothing else is downloaded), or "demo".

        `changes` take the place of what is written there: `num_labels=3`. Raises FileNotFoundError, and ValueError
        naming file and key.
        """
        path = Path(path_or_repo).expanduser()
        if path.is_file():
            return cls.from_file(path, **changes)
        return cls.from_file(find_folder(path_or_repo, revision, ("config.json",)) / "config.json", **changes)

    def to_dict(self) -> dict[str, Any]:
        """The config in every spelling at once, so that transformers of any age and mlx-lm read it.

        `rope_scaling` and `rope_theta` stand beside `rope_parameters`, and the pattern is a string (of
        one letter a layer where it does not repeat) beside explicit `layer_types`. (mlx-lm knows neither `dynamic`
        nor a window in a model whose layers are all alike.)
        """
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        del values["num_labels"]  # id2label says it
        default = Exaone4Config(num_hidden_layers=1)
        for name in SELDOM:
            if values[name] == getattr(default, name):
                del values[name]
        rope = self.rope_parameters
        values |= {
            "architectures": ["Exaone4ForCausalLM"],
            "model_type": self.model_type,
            "rope_parameters": {"rope_type": "default", "rope_theta": rope.rope_theta} | rope.scaling(),
            "sliding_window_pattern": None if self.sliding_window is None else _shortest_pattern(self.layer_types),
            "layer_types": list(self.layer_types),
        }
        if isinstance(self.eos_token_id, Sequence):
            values["eos_token_id"] = list(self.eos_token_id)
        return values

    def save_pretrained(self, folder: str | Path, **more: Any) -> None:
        """Writes config.json, with `more` keys, into a folder, which is made if need be.

        transformers and mlx-lm read it.
        """
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / "config.json") as stream:
            stream.write((json.dumps(self.to_dict() | more, indent=2) + "\n").encode())


def _changed(values: dict[str, Any], read: Exaone4Config, changes: dict[str, Any]) -> dict[str, Any]:
    """The contents of a config.json with changes made to them; what says the same there goes."""
    gone = {"layer_types"} if "sliding_window_pattern" in changes else set()
    if "id2label" in changes or changes.get("num_labels", read.num_labels) != read.num_labels:
        gone |= {"num_labels", "id2label", "label2id"}  # those of another task
    rope = {key: value for key, value in changes.items() if key.startswith("rope_")}
    if rope:  # a new base keeps the scaling, and a new scaling the base
        gone |= {"rope_parameters", "rope_scaling", "rope_theta"}
        scaling = rope.get("rope_parameters", rope.get("rope_scaling", read.rope_parameters.scaling()))
        inside = scaling.get("rope_theta") if isinstance(scaling, Mapping) else None
        rope = {"rope_theta": inside or read.rope_theta, "rope_scaling": scaling} | rope
    return {key: value for key, value in values.items() if key not in gone} | changes | rope


def _read_rope(newer: Any, older: Any, theta: float | None, max_position_embeddings: int) -> RopeParameters:
    """Either spelling of RoPE, or both when they say the same (as in the configs that we write)."""
    for key, value in (("rope_parameters", newer), ("rope_scaling", older)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{key} must be an object, not {value!r}")
    newer, older = (
        None if rope is None else {key: value for key, value in rope.items() if value is not None}
        for rope in (newer, older)
    )
    outside = {} if theta is None else {"rope_theta": theta}
    read = RopeParameters.from_dict(outside | dict(newer or older or {}), max_position_embeddings)
    if (theta is not None and read.rope_theta != theta) or (
        newer and older and read != RopeParameters.from_dict(outside | dict(older), max_position_embeddings)
    ):
        raise ValueError(f"RoPE is given twice, and differently: {newer or older} and rope_theta {theta}, {older}")
    return read


def _shortest_pattern(layer_types: tuple[str, ...]) -> str:
    letters = "".join("L" if kind == LOCAL else "G" for kind in layer_types)
    for length in range(1, len(letters) + 1):
        if (letters[:length] * len(letters))[: len(letters)] == letters:
            return letters[:length]
    return letters


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
