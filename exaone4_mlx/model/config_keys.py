"""The keys of a config.json in every spelling -> checked values.

Notes:
- RoPE is `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5). Both may be there if
  they agree.
- The kinds of the layers are `layer_types` or a `sliding_window_pattern`: letters ("LLLG"), or a number (4 for "LLLG").
- Labels are `id2label` and `label2id`, or their number, `num_labels`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from .rope import RopeParameters, is_number

LOCAL, GLOBAL = "sliding_attention", "full_attention"

#: Keys of other architectures that would change the numbers. A value other than None, False or 0 is an error.
FOREIGN_KEYS = (
    "attention_bias", "mlp_bias", "num_experts", "num_local_experts", "n_routed_experts", "num_nextn_predict_layers",
    "logit_scale", "logits_scaling", "final_logit_softcapping", "attn_logit_softcapping", "text_config",
    "vision_config",
)  # fmt: skip
#: Keys that must be positive whole numbers.
COUNTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip
#: The largest values of sizes, beyond any model: a config of a kilobyte can ask for terabytes. The tensors of a
#: checkpoint are compared with its config before a network is built.
MOST_SIZE = 2**24
MOST = {
    "num_hidden_layers": 10_000, "num_attention_heads": 2**14, "num_key_value_heads": 2**14, "head_dim": 2**14,
    "max_position_embeddings": 2**31 - 1, "sliding_window": 2**31 - 1, "num_labels": 100_000,
}  # fmt: skip
MOST_TOKEN_ID = 2**31 - 1  # a missing token may be -1
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
SWITCHES = ("use_cache", "tie_word_embeddings", "output_hidden_states", "output_attentions", "return_dict")

#: What to write in place of arguments of transformers' `from_pretrained` that are no fields of a config.
MEANT = {
    "torch_dtype": "set dtype",
    "trust_remote_code": "leave it out: no code of a checkpoint is run",
    "attn_implementation": "leave it out: attention has one implementation",
    "quantization_config": "load(path, q_bits=4) and convert quantize",
    "load_in_4bit": "load(path, q_bits=4) quantizes",
    "load_in_8bit": "load(path, q_bits=8) quantizes",
    "token": "set HF_TOKEN in the environment",
    "cache_dir": "set HF_HOME in the environment",
    "local_files_only": "set HF_HUB_OFFLINE=1 in the environment",
}


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Raises ValueError for a name that is no field of a config, with what to write in its place."""
    for name in sorted(set(given) - set(known)):
        raise ValueError(f"a config has no {name}" + (f"; {MEANT[name]}" if name in MEANT else ""))


def check_architecture(values: Mapping[str, Any]) -> None:
    """Raises ValueError for another `model_type`, and for a key that would change the numbers."""
    if values.get("model_type") != "exaone4":
        raise ValueError(f"not an EXAONE 4 model: model_type is {values.get('model_type')!r}, not 'exaone4'")
    if values.get("partial_rotary_factor") not in (None, 1):
        raise ValueError("partial_rotary_factor other than 1 is not part of EXAONE 4")
    if foreign := [key for key in FOREIGN_KEYS if values.get(key)]:
        raise ValueError(f"{foreign[0]} = {values[foreign[0]]!r} is not part of EXAONE 4 and is not implemented")


def check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    if value > MOST.get(name, MOST_SIZE):
        raise ValueError(f"{name} must be at most {MOST.get(name, MOST_SIZE)}, not {value!r}")


def read_sizes(config: Any) -> dict[str, Any]:
    """The sizes of a config, those that are absent from others. Raises ValueError for sizes that do not fit."""
    sizes = {name: getattr(config, name) for name in (*COUNTS, "head_dim")}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    check_count("hidden_size", hidden)
    check_count("num_attention_heads", heads)
    if sizes["intermediate_size"] is None:
        sizes["intermediate_size"] = 4 * hidden
    if sizes["num_key_value_heads"] is None:
        sizes["num_key_value_heads"] = heads
    for name in COUNTS:
        check_count(name, sizes[name])
    if heads % sizes["num_key_value_heads"]:
        raise ValueError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {sizes['num_key_value_heads']}"
        )
    if sizes["head_dim"] is None:
        if hidden % heads:
            raise ValueError(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is absent"
            )
        sizes["head_dim"] = hidden // heads
    check_count("head_dim", sizes["head_dim"])
    if sizes["head_dim"] % 2:
        raise ValueError(f"head_dim {sizes['head_dim']} is odd, and RoPE rotates pairs")
    if config.sliding_window is not None:
        check_count("sliding_window", config.sliding_window)
    return sizes


def check_values(config: Any) -> None:
    """Raises ValueError, naming the key, for a value of a config that is not a size and not allowed."""
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act {config.hidden_act!r} is not implemented; EXAONE 4 uses 'silu'")
    for name in ("rms_norm_eps", "initializer_range"):
        value = getattr(config, name)
        if not is_number(value) or not 0 <= value < MOST_SIZE or (name == "rms_norm_eps" and not value):
            raise ValueError(f"{name} must be a positive number, not {value!r}")
    for name in ("attention_dropout", "classifier_dropout"):
        value = getattr(config, name)
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name} must be a number from 0 to below 1, not {value!r}")
    for name in SWITCHES:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be true or false, not {getattr(config, name)!r}")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name)
        for token in ids if name == "eos_token_id" and isinstance(ids, tuple) else (ids,):
            if token is not None and (type(token) is not int or abs(token) > MOST_TOKEN_ID):
                raise ValueError(f"{name} must be a token id, not {ids!r}")
    if config.problem_type not in (None, *PROBLEM_TYPES):
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {config.problem_type!r}")


def read_rope(newer: Any, older: Any, theta: float | None, max_position_embeddings: int) -> RopeParameters:
    """`rope_parameters`, or `rope_scaling` and `rope_theta`, or all of them if they agree."""
    for key, value in (("rope_parameters", newer), ("rope_scaling", older)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{key} must be an object, not {value!r}")
    newer, older = (
        None if rope is None else {key: value for key, value in rope.items() if value is not None}
        for rope in (newer, older)
    )
    base = {} if theta is None else {"rope_theta": theta}
    read = RopeParameters.from_dict(base | dict(newer or older or {}), max_position_embeddings)
    if (theta is not None and read.rope_theta != theta) or (
        newer and older and read != RopeParameters.from_dict(base | dict(older), max_position_embeddings)
    ):
        raise ValueError(f"RoPE has two definitions that differ: {newer or older} and rope_theta {theta}, {older}")
    return read


def read_layer_types(types: Any, pattern: Any, window: int | None, count: int) -> tuple[str, ...]:
    """One name for each of `count` layers: `layer_types` unchanged, or else from the pattern."""
    if not types:
        types = _types_from_pattern(pattern, window, count)
    if isinstance(types, str) or not isinstance(types, Sequence):
        raise ValueError(f"layer_types must be a list with one name for each layer, not {types!r}")
    if len(types) != count:
        raise ValueError(f"layer_types has {len(types)} entries for {count} layers")
    if unknown := [kind for kind in types if kind not in (LOCAL, GLOBAL)]:
        raise ValueError(f"layer_types knows {LOCAL!r} and {GLOBAL!r}, not {unknown[0]!r}")
    return tuple(types)


def _types_from_pattern(pattern: Any, window: int | None, count: int) -> tuple[str, ...]:
    if isinstance(pattern, bool) or not isinstance(pattern, (str, int, type(None))):
        raise ValueError(f"sliding_window_pattern must be a string of L and G, a whole number or null: {pattern!r}")
    if isinstance(pattern, str) and (not pattern or set(pattern) - {"L", "G"}):
        raise ValueError(f"sliding_window_pattern {pattern!r} must consist of the letters L and G")
    if isinstance(pattern, int) and pattern < 0:
        raise ValueError(f"sliding_window_pattern {pattern} must not be negative")
    if window is None or not pattern:
        return (GLOBAL,) * count
    if isinstance(pattern, int):
        types = [GLOBAL if i % pattern == pattern - 1 else LOCAL for i in range(count)]
    else:
        types = [LOCAL if pattern[i % len(pattern)] == "L" else GLOBAL for i in range(count)]
    # The documentation says that the final layer is global whatever the pattern. transformers' code
    # (5.23, configuration_exaone4.py) omits this rule. No released model shows the difference.
    types[-1] = GLOBAL
    return tuple(types)


def shortest_pattern(layer_types: Sequence[str]) -> str:
    """The shortest string of L and G that gives these layers when it repeats."""
    letters = "".join("L" if kind == LOCAL else "G" for kind in layer_types)
    for length in range(1, len(letters)):
        if (letters[:length] * (len(letters) // length + 1))[: len(letters)] == letters:
            return letters[:length]
    return letters


def read_labels(count: int | None, names: Any, numbers: Any) -> tuple[dict[int, str], dict[str, int]]:
    """(id2label, label2id), checked against `num_labels`."""
    if names is None:
        count = 2 if count is None else count
        check_count("num_labels", count)
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
    return names, dict(numbers)


def with_changes(
    values: Mapping[str, Any], rope: RopeParameters, num_labels: int, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """A written config with some keys changed. Other spellings of the same value are removed.

    `rope` and `num_labels` are the values before the changes.
    """
    removed = {"layer_types"} if {"sliding_window_pattern", "num_hidden_layers"} & set(changes) else set()
    if "id2label" in changes or changes.get("num_labels", num_labels) != num_labels:
        removed |= {"num_labels", "id2label", "label2id"}  # those of another task
    new_rope = {key: value for key, value in changes.items() if key.startswith("rope_")}
    if new_rope:  # a new base keeps the scaling, and a new scaling keeps the base
        removed |= {"rope_parameters", "rope_scaling", "rope_theta"}
        scaling = new_rope.get("rope_parameters", new_rope.get("rope_scaling", rope.scaling()))
        base = scaling.get("rope_theta") if isinstance(scaling, Mapping) else None
        new_rope = {"rope_theta": base or rope.rope_theta, "rope_scaling": scaling} | new_rope
    return {key: value for key, value in values.items() if key not in removed} | dict(changes) | new_rope
