"""A checkpoint folder in any format -> a network with its weights, and a network -> a checkpoint folder.

Notes:
- Tensors are read, cast, quantized and evaluated one by one. Memory never holds a second copy of the model.
- Two kinds of extra tensor are harmless and ignored: stored rotary frequencies, which are computed here, and an output
  head beside tied embeddings if it equals them.
- With `backbone`, a network is read from the checkpoint of any other network: the prefix of the names is adapted, an
  unknown head is ignored, and a missing head is new.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoint.formats import Source
from ..checkpoint.quantize import Quantization, quantization_keys
from ..checkpoint.share import EMBEDDING, HEAD, LAYER, Share, Stage, fingerprint, part_of
from ..cluster.ranks import Ranks
from ..files.folders import atomic_file, find_folder, physical_memory, read_json
from ..files.safetensors import Checkpoint, CheckpointError, check_finite, read_dtype
from .config import Exaone4Config
from .generation_config import GenerationConfig
from .led import spread

if TYPE_CHECKING:
    from typing_extensions import Self

#: (bytes read, bytes in all) -> None
Progress = Callable[[int, int], None]

#: The prefixes of the names of the heads' weights.
HEAD_PREFIXES = ("lm_head.", "score.", "qa_outputs.")
ROTARY_FREQUENCIES = re.compile(r"((model|transformer)\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
Network = TypeVar("Network", bound=nn.Module)
#: The modules with a checkpoint's weights, and the files of further ones.
PLAIN = (nn.Linear, nn.Embedding, nn.RMSNorm, nn.Dropout)
OWN_LAYERS = tuple(f"{__package__}.{name}" for name in ("network", "heads"))


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint whose headers are read and whose tensors are accounted for.

    `shapes` are those of the weights that are read from it. `new` holds the weights of the head that it lacks.
    """

    config: Exaone4Config
    checkpoint: Checkpoint
    source: Source
    shapes: Mapping[str, tuple[int, ...]]
    new: Mapping[str, mx.array] = field(default_factory=dict)
    share: Share | Stage | None = None  # the part that this rank reads

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def nbytes(self) -> int:
        """The size of the weights as they are stored."""
        return sum(self.source.tensors[name].nbytes for name in self.shapes)

    @property
    def bits_per_weight(self) -> float:
        """As the weights are stored, with scales and biases."""
        return 8 * self.nbytes / sum(math.prod(shape) for shape in self.shapes.values())

    def parts(self, name: str) -> list[tuple[str, mx.array]]:
        """The arrays of a weight: MLX's packed weight, scales and biases if it has them, or the weight itself."""
        tensor, cut = self.source.tensors[name], None if self.share is None else self.share.cut(name)
        if not tensor.exact:
            return [(name, self.source.weight(name) if cut is None else self.source.part(name, cut))]
        return [(part, _cast(array, tensor.scale_dtype)) for part, array in self.source.parts(name, cut)]


def open_checkpoint(
    folder: Path,
    kind: Callable[[Exaone4Config], nn.Module],
    config: Exaone4Config | None = None,
    backbone: str | None = None,
) -> OpenCheckpoint:
    """Accounts for each tensor of a folder, in any format that is read here, as a weight of the network `kind`.

    `config` is the folder's own unless given. With `backbone`, the prefix of the names of the network's backbone, the
    folder may hold any other network. Raises CheckpointError for a missing, unknown or misshapen tensor, and ValueError
    for a format that is not supported.
    """
    if config is None:
        config = Exaone4Config.from_file(folder / "config.json")
    checkpoint = Checkpoint(folder)
    source = Source(checkpoint, read_json(folder / "config.json"))
    check_layers(source.tensors, config, folder)
    wanted = named_parameters(kind(config))
    _drop_harmless(source, config, folder)
    new = {} if backbone is None else _adapt_names(source, backbone, wanted)
    shapes = {name: array.shape for name, array in wanted.items() if name not in new}
    _check_names(source.tensors, shapes, folder)
    for name, shape in shapes.items():
        if (found := source.tensors[name].shape) != shape:
            raise CheckpointError(f"{source.file(name)}: {name} has shape {found}, not {shape}")
    return OpenCheckpoint(config, checkpoint, source, shapes, new)


def load_network(
    kind: Callable[[Exaone4Config], Network],
    folder: Path,
    config: Exaone4Config | None = None,
    *,
    backbone: str | None = None,
    dtype: mx.Dtype | str | None = None,
    q_bits: int | None = None,
    q_group_size: int = 64,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Network:
    """A network with the weights of a folder. Arguments and errors as for `open_checkpoint` and `load`.

    With `ranks`, a causal language model gets the part of this rank. All ranks call it together.
    """
    cast = read_dtype(dtype)
    if q_bits is None and q_group_size != 64:
        raise ValueError(f"q_group_size {q_group_size} needs q_bits beside it")
    quantization = None if q_bits is None else Quantization(q_bits, q_group_size)
    opened = open_checkpoint(folder, kind, config, backbone)
    source = opened.source
    if quantization is None:
        settings = {name: exact for name in opened.shapes if (exact := source.tensors[name].exact)}
    elif any(tensor.exact for tensor in source.tensors.values()):
        raise ValueError(f"{folder} is already quantized ({source.format}); load it without q_bits")
    else:
        settings = {name: quantization for name, shape in opened.shapes.items() if quantization.applies_to(name, shape)}
    if ranks is not None:
        share = part_of(ranks, opened.config, source.tensors.values())
        share.check_groups(settings, opened.shapes)
        casts = {"dtype": str(dtype), "q_bits": q_bits, "q_group_size": q_group_size, "pipeline": ranks.pipeline}
        ranks.agree("the checkpoint", fingerprint(opened.checkpoint) | casts)
        kept = {name: shape for name, shape in opened.shapes.items() if share.has(name)}
        opened = replace(opened, shapes=kept, share=share)
    if quantization is None and source.is_foreign:
        warnings.warn(
            f"{folder} is {source.format}, which MLX has no kernels for: it is computed in full precision; "
            "convert it once, for a quarter of the memory",
            stacklevel=3,
        )
    if opened.new:
        warnings.warn(f"{folder} has no {', '.join(sorted(opened.new))}: new here, and to be trained", stacklevel=3)
    network = kind(opened.config)
    quantize_layers(network, {name.removesuffix(".weight"): chosen for name, chosen in settings.items()})
    fill(network, _weights(opened, settings, cast, progress))
    if ranks is not None:
        spread(network, ranks, share)
        ranks.agree("the end of loading", {})
    return network


def named_parameters(module: nn.Module) -> dict[str, mx.array]:
    """The parameters of a module under their dotted names, as in a checkpoint."""
    return dict(tree_flatten(module.parameters()))


def quantize_layers(module: nn.Module, settings: Mapping[str, Quantization]) -> None:
    """Replaces the layers in `settings` by quantized ones, whose weights are unevaluated, to be filled."""

    def chosen(name: str, layer: nn.Module) -> bool | dict[str, Any]:
        return settings[name].as_dict() if name in settings and hasattr(layer, "to_quantized") else False

    nn.quantize(module, class_predicate=chosen)


def fill(module: nn.Module, weights: Iterable[tuple[str, mx.array]]) -> None:
    """Gives a module its parameters and puts it into evaluation mode.

    Each array is evaluated before the next is read. So no tensor is read twice, and any thread can use the arrays: an
    unevaluated array belongs to the thread that made it.
    """
    filled = []
    for name, array in weights:
        mx.eval(array)
        filled.append((name, array))
    module.update(tree_unflatten(filled))
    module.eval()


def _weights(
    opened: OpenCheckpoint, settings: Mapping[str, Quantization], cast: mx.Dtype | None, progress: Progress | None
) -> Iterator[tuple[str, mx.array]]:
    """The parameters of a network, one by one. Those in `settings` are quantized."""
    source, done = opened.source, 0
    for name in sorted(opened.shapes, key=lambda name: (source.file(name).name, name)):  # opens each file once
        stored = source.tensors[name]
        parts = [(part, _cast(array, cast)) for part, array in opened.parts(name)]
        _check(opened, name, parts)
        if name in settings and not stored.exact:
            parts = settings[name].tensors(name, parts[0][1])
            _check(opened, name, parts)
        yield from parts
        done += stored.nbytes
        if progress:
            progress(done, opened.nbytes)
    for name, array in opened.new.items():
        yield name, array.astype(cast or next(iter(source.tensors.values())).dtype)


def _check(opened: OpenCheckpoint, name: str, parts: Sequence[tuple[str, mx.array]]) -> None:
    """Raises CheckpointError for NaN and infinity in arrays that were made from those of the weight `name`."""
    for part, array in parts:
        check_finite(array, f"{opened.source.file(name)}: {part}", lambda: (array for _, array in opened.parts(name)))


def _cast(array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    return array if dtype is None or not mx.issubdtype(array.dtype, mx.floating) else array.astype(dtype)


def _drop_harmless(source: Source, config: Exaone4Config, folder: Path) -> None:
    for name in list(filter(ROTARY_FREQUENCIES.fullmatch, source.tensors)):
        del source.tensors[name]
    if config.tie_word_embeddings and HEAD in source.tensors and EMBEDDING in source.tensors:
        if not source.equal(HEAD, EMBEDDING):
            raise CheckpointError(
                f"{folder}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}; "
                "set it to false if the head is meant to be used"
            )
        source.close()
        del source.tensors[HEAD]


def _adapt_names(source: Source, backbone: str, wanted: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Renames tensors as the network names them and drops unknown heads, as transformers does.

    Returns the weights of the network's head that the checkpoint lacks.
    """
    for name in list(source.tensors):
        if not name.startswith(HEAD_PREFIXES):
            source.rename(name, backbone + name.removeprefix("model.").removeprefix("transformer."))
        elif name not in wanted:
            del source.tensors[name]
    return {name: wanted[name] for name in wanted if name.startswith(HEAD_PREFIXES) and name not in source.tensors}


def check_layers(names: Iterable[str], config: Exaone4Config, folder: Path) -> None:
    """Raises CheckpointError if the config asks for more layers than the tensors have: a layer takes time to build."""
    found = {match[1] for name in names if (match := LAYER.match(name))}
    if config.num_hidden_layers > len(found):
        raise CheckpointError(
            f"{folder}: num_hidden_layers is {config.num_hidden_layers} in config.json, and the weights have "
            f"{len(found)} layers"
        )


def _check_names(found: Collection[str], wanted: Collection[str], folder: Path) -> None:
    """Raises CheckpointError that names the missing or the unknown tensors."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if names := missing or extra:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        tensors = f"tensor{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{more}"
        held = f"holds {tensors}, which this architecture does not have"
        raise CheckpointError(f"{folder} {f'lacks {tensors}' if missing else held}")


def new_linear(config: Exaone4Config, inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A projection with new weights, as transformers draws them: normal, with deviation `initializer_range`."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.weight = mx.random.normal((outputs, inputs), scale=config.initializer_range)
    if bias:
        layer.bias = mx.zeros(outputs)
    return layer


def new_embedding(config: Exaone4Config) -> nn.Embedding:
    """Token embeddings with new weights. The padding token's embedding is zero."""
    layer = nn.Embedding(config.vocab_size, config.hidden_size)
    layer.weight = mx.random.normal((config.vocab_size, config.hidden_size), scale=config.initializer_range)
    if config.pad_token_id is not None:
        layer.weight = mx.where(mx.arange(config.vocab_size)[:, None] == config.pad_token_id, 0, layer.weight)
    return layer


class Pretrained(nn.Module):
    """A network with a config."""

    backbone: ClassVar[str] = "model."  # the prefix of the names of Exaone4Model's weights

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.config = config
        self.generation_config = GenerationConfig()  # the defaults of `generate`
        config.mark_in_use()

    @property
    def device(self) -> mx.Device:
        """The device that MLX computes on: the default device of the process."""
        return mx.default_device()

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        dtype: mx.Dtype | str | None = None,
        device_map: str | mx.Device | None = None,
        **changes: Any,
    ) -> Self:
        """The network of a checkpoint: a folder in Hugging Face or MLX format, a hub id, or "demo". No tokenizer.

        `dtype` (bfloat16, float16 or float32, as `mx.Dtype` or name) is the dtype of the floating-point weights; None
        or "auto" keeps the checkpoint's. `device_map` may be "auto" or the default device of MLX. `changes` replace
        fields of the config: `num_labels=3`. If the checkpoint has no weights for the head, the head is new, and a
        warning says so.

        Raises FileNotFoundError for a missing folder or file, and ValueError (CheckpointError for damaged weights) for
        a folder that is no EXAONE 4 checkpoint. Each error names the file.
        """
        device = mx.default_device()
        names = (None, "auto", "gpu", "mps") if device.type == mx.gpu else (None, "auto", "cpu")
        if not (device_map == device if isinstance(device_map, mx.Device) else device_map in names):
            raise ValueError(
                f"device_map must be 'auto', not {device_map!r}: MLX computes on its default device, "
                "which mx.set_default_device changes"
            )
        folder = find_folder(path_or_repo, revision)
        config = Exaone4Config.from_file(folder / "config.json", **changes)
        dtype = None if dtype == "auto" else dtype
        network = load_network(cls, folder, config, backbone=cls.backbone, dtype=dtype)
        network.generation_config = GenerationConfig.from_folder(folder)
        return network

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors into a folder, which is created if it does not exist.

        Both files are replaced if they exist. `from_pretrained` and transformers read the folder; with quantized layers
        `from_pretrained` and mlx-lm. Raises ValueError for a network with adapters that are not fused, and
        FileExistsError for a folder with other weight files, which would be read instead.
        """
        settings: dict[str, Quantization | None] = {}
        for name, part in self.named_modules():
            if isinstance(part, nn.QuantizedLinear | nn.QuantizedEmbedding):
                settings[name] = Quantization(part.bits, part.group_size, part.mode)
            elif (kind := type(part)) not in PLAIN and kind.__module__ not in OWN_LAYERS:
                raise ValueError(f"{name} is a {kind.__name__}, not a layer of {type(self).__name__}: fuse it first")
        weights, folder = named_parameters(self), Path(folder).expanduser()
        others = {file.name for file in folder.glob("*model*.safetensors*")} - {"model.safetensors"}
        if others:
            raise FileExistsError(f"{folder} holds another checkpoint ({min(others)}); choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        dtype = next(array.dtype for array in weights.values() if mx.issubdtype(array.dtype, mx.floating))
        with atomic_file(folder / "model.safetensors") as stream:
            mx.save_safetensors(stream, weights, metadata={"format": "mlx"})  # type: ignore[arg-type]
            keys = {"architectures": [type(self).__name__], "dtype": str(dtype).removeprefix("mlx.core.")}
            self.config.save_pretrained(folder, **keys, **quantization_keys(settings))


def has_gpu() -> bool:
    """Whether MLX computes on a GPU here."""
    return bool(mx.default_device() == mx.Device(mx.gpu))


def memory_of_this_machine() -> int:
    """Bytes that a model may use here: Metal's recommended maximum, or without Metal the physical memory."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return physical_memory()
