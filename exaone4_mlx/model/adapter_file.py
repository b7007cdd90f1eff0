"""The folder of an adapter, in mlx-lm's format or in PEFT's -> an `Adapter`, and back.

Notes:
- mlx-lm: `adapters.safetensors`, and `fine_tune_type`, `num_layers` and `lora_parameters` in `adapter_config.json`.
- PEFT: `adapter_model.safetensors` with transposed matrices, and `r`, `lora_alpha` and `target_modules`.
- A setting of PEFT's that changes numbers and is not supported is refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files.folders import atomic_file, find_folder, read_json
from ..files.safetensors import FLOATS, CheckpointError, check_finite, read_header
from .adapter import KEYS, Adapter, AdapterConfig, WeightedAdapter, is_number

AdapterPath = str | Path | Adapter
AdapterPaths = AdapterPath | Sequence[AdapterPath]
Scales = float | Sequence[float]

CONFIG_NAME = "adapter_config.json"
WEIGHTS = {"mlx-lm": "adapters.safetensors", "peft": "adapter_model.safetensors"}
FILES = (CONFIG_NAME, *WEIGHTS.values(), "README.md")
PEFT_PREFIX = "base_model.model."
PEFT_ARRAY = re.compile(r"base_model\.model\.(.+)\.lora_(A\.weight|B\.weight|magnitude_vector(?:\.weight)?)")
PARTS = {"A": "lora_a", "B": "lora_b", "m": "m"}
#: Settings of PEFT that change numbers: the values with which they change nothing.
PEFT_REFUSED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "fan_in_fan_out": (False,), "modules_to_save": (None, []), "rank_pattern": ({},),
    "alpha_pattern": ({},), "layer_replication": (None,), "trainable_token_indices": (None,), "lora_bias": (False,),
    "target_parameters": (None, []), "use_qalora": (False,), "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "lora_ga"),
}  # fmt: skip


def read_adapters(adapter_path: AdapterPaths = (), adapter_scale: Scales = 1.0) -> tuple[WeightedAdapter, ...]:
    """Adapters with their scales. Each adapter is a folder, a hub id or an `Adapter`. Errors as for `read_adapter`."""
    several = [adapter_path] if isinstance(adapter_path, str | Path | Adapter) else list(adapter_path)
    each = list(adapter_scale) if isinstance(adapter_scale, Sequence) else [adapter_scale] * len(several)
    if len(each) != len(several):
        raise ValueError(f"there are {len(several)} adapters and {len(each)} scales: give one scale, or one for each")
    found = [adapter if isinstance(adapter, Adapter) else read_adapter(adapter) for adapter in several]
    return tuple(zip(found, each, strict=True))


def read_adapter(path_or_repo: str | Path, revision: str | None = None) -> Adapter:
    """The adapter of a folder or hub id. Its arrays are evaluated.

    Raises FileNotFoundError for a missing folder or file, CheckpointError for damaged weights, and ValueError for a
    setting that is not supported. Each error names the file.
    """
    folder = find_folder(path_or_repo, revision, FILES)
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_NAME}: it is not the folder of an adapter")
    values = read_json(folder / CONFIG_NAME)
    layout = "peft" if "peft_type" in values else "mlx-lm"
    file = folder / WEIGHTS[layout]
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {file.name}")
    try:
        config = _peft_config(values) if layout == "peft" else _mlx_lm_config(values)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_NAME}: {error}") from error
    arrays = _read_arrays(file)
    if layout == "peft":
        arrays = _from_peft(arrays, file)
        config = replace(config, keys=_keys_of(arrays) or config.keys)
    mx.eval(arrays)
    return Adapter(config, arrays, str(path_or_repo))


def write_adapter(folder: str | Path, adapter: Adapter, layout: str = "mlx-lm") -> None:
    """Writes an adapter into a folder, which is created, in the layout "mlx-lm" or "peft". Both files are replaced.

    Raises ValueError for a `full` adapter in PEFT's layout, which has no form for it.
    """
    if layout not in WEIGHTS:
        raise ValueError(f"the layout of an adapter is {' or '.join(WEIGHTS)}, not {layout!r:.99}")
    config, arrays = adapter.config, dict(adapter.arrays)
    if layout == "mlx-lm":
        values = _mlx_lm_values(config)
    elif config.fine_tune_type == "full":
        raise ValueError(f"{adapter.name} has whole weights, which PEFT does not read: fuse it with its base")
    else:
        values, arrays = _peft_values(adapter), _to_peft(arrays)
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / WEIGHTS[layout]) as stream:
        mx.save_safetensors(stream, arrays, {"format": "pt" if layout == "peft" else "mlx"})  # type: ignore[arg-type]
    with atomic_file(folder / CONFIG_NAME) as stream:
        stream.write(json.dumps(values, indent=2).encode())


def _read_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a file, each checked: a float, finite."""
    for name, info in read_header(file).items():
        if info.dtype not in FLOATS:
            raise CheckpointError(f"{file}: {name} has dtype {info.dtype}, not one of {', '.join(FLOATS)}")
    arrays: Any = mx.load(str(file), format="safetensors")
    for name, array in arrays.items():
        check_finite(array, f"{file}: {name}")
    return dict(arrays)


def _mlx_lm_config(values: Mapping[str, Any]) -> AdapterConfig:
    kind, base = values.get("fine_tune_type", "lora"), values.get("model")
    parameters = {} if kind == "full" else values.get("lora_parameters")
    if not isinstance(parameters, Mapping):
        raise ValueError("it has neither lora_parameters (mlx-lm) nor peft_type (PEFT)")
    if lacking := [name for name in ("rank", "scale") if kind != "full" and name not in parameters]:
        raise ValueError(f"lora_parameters lacks {lacking[0]}")
    return AdapterConfig(
        fine_tune_type=kind,
        rank=parameters.get("rank", 1),
        scale=parameters.get("scale", 1.0),
        dropout=parameters.get("dropout", 0.0),
        num_layers=values.get("num_layers", -1),
        keys=_checked_keys(parameters.get("keys")),
        base=base if isinstance(base, str) else None,
    )


def _checked_keys(keys: Any) -> tuple[str, ...]:
    if keys is None:
        return KEYS
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"lora_parameters.keys must be a list of names, not {keys!r:.99}")
    return tuple(keys)


def _mlx_lm_values(config: AdapterConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"fine_tune_type": config.fine_tune_type, "num_layers": config.num_layers}
    if config.base is not None:
        values["model"] = config.base
    if config.fine_tune_type != "full":
        names = {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}
        values["lora_parameters"] = {**names, "keys": list(config.keys)}
    return values


def _peft_config(values: Mapping[str, Any]) -> AdapterConfig:
    if values["peft_type"] != "LORA":
        raise ValueError(f"peft_type is {values['peft_type']!r:.99}, and only LORA is supported")
    for name, harmless in PEFT_REFUSED.items():
        if name in values and values[name] not in harmless:
            raise ValueError(f"{name} is {values[name]!r:.99}, which is not supported")
    rank, alpha, base = values.get("r"), values.get("lora_alpha"), values.get("base_model_name_or_path")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"r must be a whole number above 0, not {rank!r:.99}")
    if not is_number(alpha):
        raise ValueError(f"lora_alpha must be a number, not {alpha!r:.99}")
    return AdapterConfig(
        fine_tune_type="dora" if values.get("use_dora") else "lora",
        rank=rank,
        scale=alpha / (math.sqrt(rank) if values.get("use_rslora") else rank),
        dropout=values.get("lora_dropout", 0.0),
        base=base if isinstance(base, str) and base else None,
    )


def _peft_values(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base or "",
        "r": config.rank,
        "lora_alpha": config.scale * config.rank,
        "lora_dropout": config.dropout,
        "use_dora": config.fine_tune_type == "dora",
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": sorted(adapter.modules),  # whole names: other layers have no adapter
    }


def _from_peft(arrays: Mapping[str, mx.array], file: Path) -> dict[str, mx.array]:
    found = {}
    for name, array in arrays.items():
        if (match := PEFT_ARRAY.fullmatch(name)) is None:
            raise ValueError(f"{file} has {name}, which is not supported")
        part = PARTS[match[2][0]]
        found[f"{match[1]}.{part}"] = array if part == "m" else mx.contiguous(array.T)
    return found


def _to_peft(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    named = {}
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        end = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}[part]
        named[f"{PEFT_PREFIX}{module}.{end}"] = array if part == "m" else mx.contiguous(array.T)
    return named


def _keys_of(arrays: Mapping[str, mx.array]) -> tuple[str, ...]:
    """The keys of the projections that arrays are for."""
    found = {name.rpartition(".")[0].split(".", 3)[-1] for name in arrays}
    return tuple(key for key in (*KEYS, "lm_head") if key in found)
