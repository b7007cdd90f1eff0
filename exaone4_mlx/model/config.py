"""config.json -> one frozen `Exaone4Config`; what each layer attends to is decided here, once.

What is peculiar here:
- Four spellings are read: RoPE as `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters`
  (transformers 5), each with or without `layer_types`.
- A layer rotates its queries and keys if and only if it is local, or no window is set at all.
- Fields and their defaults are those of transformers' `Exaone4Config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from .rope import RopeParameters

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


class LayerAttention(NamedTuple):
    """What one layer attends to: `window` in tokens (None: everything), and whether it rotates queries and keys."""

    window: int | None
    rope: bool


@dataclass(frozen=True)
class Exaone4Config:
    """An EXAONE 4 architecture. Sizes are in elements, lengths in tokens.

    `layer_types` and `head_dim` may be left out; after construction they are always set. Given layer types
    are never altered, and `sliding_window_pattern` then says nothing; without them, a null pattern means
    that no layer has a window, and `sliding_window` becomes None.
    Raises ValueError, naming the key, for values that contradict each other.
    """

    vocab_size: int = 102_400
    hidden_size: int = 4096
    intermediate_size: int = 16_384
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | Sequence[int] | None = 2
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)
    attention_dropout: float = 0.0
    sliding_window: int | None = 4096
    sliding_window_pattern: str | int | None = 4
    layer_types: tuple[str, ...] = ()  # (): from the pattern

    def __post_init__(self) -> None:
        def set_once(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in COUNTS:
            _check_count(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                    f"{self.num_attention_heads}, and head_dim is not given"
                )
            set_once("head_dim", self.hidden_size // self.num_attention_heads)
        _check_count("head_dim", self.head_dim)
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, and RoPE rotates pairs")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act {self.hidden_act!r} is not implemented; EXAONE 4 uses 'silu'")
        if self.sliding_window is not None:
            _check_count("sliding_window", self.sliding_window)
        if not self.rms_norm_eps > 0:
            raise ValueError(f"rms_norm_eps must be positive, not {self.rms_norm_eps!r}")
        if isinstance(self.eos_token_id, Sequence):
            set_once("eos_token_id", tuple(self.eos_token_id))
        if not self.layer_types:
            set_once("layer_types", self._types_from_pattern())
            if not self.sliding_window_pattern:
                set_once("sliding_window", None)
        set_once("layer_types", tuple(self.layer_types))
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        if unknown := sorted(set(self.layer_types) - {LOCAL, GLOBAL}):
            raise ValueError(f"layer_types knows {LOCAL!r} and {GLOBAL!r}, not {unknown[0]!r}")

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
        if foreign := [key for key in FOREIGN_KEYS if values.get(key)]:
            raise ValueError(f"{foreign[0]} = {values[foreign[0]]!r} is not part of EXAONE 4 and is not implemented")
        names = {item.name for item in fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        for name in ("head_dim", "layer_types"):  # null means: not given
            if known.get(name, ...) is None:
                del known[name]
        max_positions = known.get("max_position_embeddings", cls.max_position_embeddings)
        known["rope_parameters"] = _read_rope(values, max_positions)
        return cls(**known)

    @classmethod
    def from_file(cls, path: Path) -> Exaone4Config:
        """Reads a config.json; errors name the file, and FileNotFoundError its folder."""
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} has no config.json: it is not a model folder")
        try:
            return cls.from_dict(read_json(path))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The config in every spelling at once, so that transformers of any age and mlx-lm read it.

        `rope_scaling` and `rope_theta` stand beside `rope_parameters`, and the pattern is a string (of
        one letter a layer where it does not repeat) beside explicit `layer_types`.
        """
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        rope = self.rope_parameters
        values |= {
            "architectures": ["Exaone4ForCausalLM"],
            "model_type": "exaone4",
            "rope_parameters": {"rope_type": "default", "rope_theta": rope.rope_theta} | rope.scaling(),
            "rope_theta": rope.rope_theta,
            "rope_scaling": rope.scaling() or None,
            "sliding_window_pattern": None if self.sliding_window is None else _shortest_pattern(self.layer_types),
            "layer_types": list(self.layer_types),
        }
        if isinstance(self.eos_token_id, Sequence):
            values["eos_token_id"] = list(self.eos_token_id)
        return values


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError for anything but an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return values


def _read_rope(values: Mapping[str, Any], max_position_embeddings: int) -> RopeParameters:
    """Either spelling of RoPE, or both when they say the same (as in the configs that we write)."""
    outside = {key: values[key] for key in ("rope_theta", "partial_rotary_factor") if values.get(key) is not None}
    newer, older = values.get("rope_parameters"), values.get("rope_scaling")
    read = RopeParameters.from_dict(outside | dict(newer or older or {}), max_position_embeddings)
    theta = outside.get("rope_theta", read.rope_theta)
    if read.rope_theta != theta or (
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
