"""The sizes of a model before it is loaded: its config, and the shapes and dtypes of its weights.

Notes:
- Only headers and config.json are read. No weight is read and no array is made, so that any thread may call this.
- Without weight files the shapes follow from config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import mlx.core as mx

from ..checkpoint.formats import Source
from ..checkpoint.layouts import StoredTensor
from ..checkpoint.quantize import Quantization, read_quantization, stored_settings
from ..files.folders import BUILT_IN, find_folder, read_json
from ..files.safetensors import INDEX_NAME, Checkpoint, read_dtype
from ..model.config import Exaone4Config
from ..model.pretrained import EMBEDDING, HEAD
from ..text.tokenizer import Tokenizer

#: Files that hold weights or list them.
WEIGHT_FILES = ("*.safetensors", INDEX_NAME, "*.bin", "*.pt", "*.pth", "*.gguf")


@dataclass(frozen=True)
class Sizes:
    """A model before it is loaded: config, tensors by name, and the dtype of affine scales by tensor name."""

    title: str  # for errors
    config: Exaone4Config
    tensors: Mapping[str, StoredTensor]
    scales: Mapping[str, mx.Dtype]
    folder: Path
    has_no_files: bool = False  # True where the tensors follow from config.json alone

    @property
    def is_quantized(self) -> bool:
        """True if `load` cannot quantize the model again."""
        return any(tensor.exact for tensor in self.tensors.values())

    def weights_bytes(self, cast: mx.Dtype | None = None, quantization: Quantization | None = None) -> int:
        """Bytes of all weights after loading, cast or quantized."""
        return sum(self._loaded_bytes(tensor, cast, quantization) for tensor in self.tensors.values())

    def _loaded_bytes(self, tensor: StoredTensor, cast: mx.Dtype | None, quantization: Quantization | None) -> int:
        """A format that MLX does not have is loaded in full precision. Scales and biases have the dtype of the cast."""
        size = math.prod(tensor.shape)
        scale_dtype = cast or self.scales.get(tensor.name, tensor.dtype)
        if tensor.exact and tensor.exact.mode != "affine":
            return tensor.nbytes
        if tensor.exact:
            return _affine_bytes(size, tensor.exact, scale_dtype)
        if quantization and quantization.applies_to(tensor.name, tensor.shape):
            return _affine_bytes(size, quantization, scale_dtype)
        return size * scale_dtype.size

    def activation_dtype(self, cast: mx.Dtype | None = None) -> mx.Dtype:
        """The dtype that the dtypes of embedding and layers promote to, after a cast.

        If the dtypes differ, the cache of the first layer may have a smaller dtype. All other layers have this one.
        """
        parts = [t for name, t in self.tensors.items() if name.startswith(("model.embed_tokens.", "model.layers."))]
        # Formats whose scales are not floating-point numbers are unpacked to the dtype that MLX defines for them.
        has_own = {tensor.name for tensor in parts if tensor.exact and tensor.exact.mode != "affine"}
        dtypes = {tensor.dtype if tensor.name in has_own else cast or tensor.dtype for tensor in parts}
        return reduce(mx.result_type, dtypes or {mx.bfloat16})


def read_sizes(path_or_repo: str | Path, revision: str | None = None) -> Sizes:
    """The sizes of a folder, a config.json, a hub id (of which only config.json is downloaded), or "demo".

    The shapes follow from the config for a folder without weight files, for a repository whose weights are not all in
    the cache of the hub, and for a config.json. Raises FileNotFoundError and ValueError as `fit` does.
    """
    path, is_demo = Path(path_or_repo).expanduser(), str(path_or_repo) in BUILT_IN
    if path.is_file() and not is_demo:
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for hub ids; {path} is a local file")
        return _sizes_from_config(path)
    is_local = is_demo or path.is_dir()
    folder = find_folder(path_or_repo, revision, ("config.json",))
    config = Exaone4Config.from_file(folder / "config.json")
    try:
        checkpoint = Checkpoint(folder)
    except FileNotFoundError:
        if is_local and any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
            raise
        return _sizes_from_config(folder / "config.json")
    source = Source(checkpoint, read_json(folder / "config.json"))
    # `load` ignores these extra tensors.
    extra = ("rotary_emb.inv_freq", HEAD) if config.tie_word_embeddings else ("rotary_emb.inv_freq",)
    tensors = {name: tensor for name, tensor in source.tensors.items() if not name.endswith(extra)}
    affine = [name for name, tensor in tensors.items() if tensor.exact and tensor.exact.mode == "affine"]
    return Sizes(str(path_or_repo), config, tensors, {name: tensors[name].scale_dtype for name in affine}, folder)


def _sizes_from_config(path: Path) -> Sizes:
    """The sizes that follow from a config.json, in its dtype and bits; without a dtype in bfloat16.

    Raises ValueError for a quantization whose size config.json does not define.
    """
    config, values = Exaone4Config.from_file(path), read_json(path)
    given = values.get("quantization") or values.get("quantization_config")
    if isinstance(given, Mapping) and "quant_method" in given:  # not MLX's
        method = given["quant_method"]
        raise ValueError(f"{path}: config.json alone does not tell how large {method!r} weights are; get them, too")
    dtype = read_dtype(values.get("dtype") or values.get("torch_dtype")) or mx.bfloat16
    shapes = weight_shapes(config)
    quantization = read_quantization(values)
    settings: dict[str, Quantization] = {}
    if quantization:
        layers = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
        settings = stored_settings(quantization, [layer for layer in layers if quantization.get(layer) is not False])
    tensors = {}
    for name, shape in shapes.items():
        chosen = settings.get(name.removesuffix(".weight"))
        exact = chosen if chosen and chosen.applies_to(name, shape) else None
        bits = exact.bits_per_weight(8 * dtype.size) if exact else 8 * dtype.size
        nbytes = int(math.prod(shape) * bits) // 8
        tensors[name] = StoredTensor(name, shape, dtype, (name,), nbytes, exact)
    return Sizes(str(path), config, tensors, {}, path.parent, has_no_files=True)


def weight_shapes(config: Exaone4Config) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a checkpoint in full precision, by name."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, key_heads = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    block = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (key_heads, hidden),
        "self_attn.v_proj": (key_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "self_attn.q_norm": (head_dim,),
        "self_attn.k_norm": (head_dim,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "post_attention_layernorm": (hidden,),
        "post_feedforward_layernorm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes if config.tie_word_embeddings else shapes | {HEAD: (config.vocab_size, hidden)}


def check_draft(sizes: Sizes, draft: Sizes, tokenizer: Tokenizer | None = None) -> None:
    """Raises ValueError for a draft model with another vocabulary or tokenizer, whose ids stand for other texts.

    Compares the tokenizers if both exist. `tokenizer` is the one of `sizes`, if it is loaded. Chat templates may
    differ.
    """
    if draft.config.vocab_size != sizes.config.vocab_size:
        raise ValueError(
            f"the draft model {draft.title} has a vocabulary of {draft.config.vocab_size} tokens, and {sizes.title} "
            f"one of {sizes.config.vocab_size}: take one of the same family"
        )
    if not all((folder / "tokenizer.json").is_file() for folder in (sizes.folder, draft.folder)):
        return
    both = (tokenizer or Tokenizer.from_pretrained(sizes.folder), Tokenizer.from_pretrained(draft.folder))
    one, other = (read.fingerprints["tokenizer"] for read in both)
    if one != other:
        raise ValueError(
            f"the draft model {draft.title} has another tokenizer than {sizes.title}, so that the same ids are other "
            "texts: take one of the same family"
        )


def _affine_bytes(size: int, quantization: Quantization, scale_dtype: mx.Dtype) -> int:
    """Bytes of `size` weights with a scale and a bias per group."""
    return size * quantization.bits // 8 + 2 * (size // quantization.group_size) * scale_dtype.size
