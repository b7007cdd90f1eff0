"""The base of all networks: `from_pretrained` reads a checkpoint, `save_pretrained` writes one.

Notes:
- New weights are drawn as transformers draws them, for training from the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..files.folders import atomic_file, find_folder
from .config import Exaone4Config
from .source import load_network, named_parameters

if TYPE_CHECKING:
    from typing_extensions import Self


#: The modules with a checkpoint's weights, beside the modules of this folder.
PLAIN = (nn.Linear, nn.Embedding, nn.RMSNorm, nn.Dropout)


class Pretrained(nn.Module):
    """A network with a config."""

    backbone: ClassVar[str] = "model."  # the prefix of the names of Exaone4Model's weights

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        dtype: mx.Dtype | str | None = None,
        **changes: Any,
    ) -> Self:
        """The network of a checkpoint: a folder in Hugging Face or MLX format, a hub id, or "demo". No tokenizer.

        `dtype` (bfloat16, float16 or float32, as `mx.Dtype` or name) is the dtype of the floating-point weights; None
        keeps the checkpoint's. `changes` replace fields of the config: `num_labels=3`. If the checkpoint has no weights
        for the head, the head is new, and a warning says so.

        Raises FileNotFoundError for a missing folder or file, and ValueError (CheckpointError for damaged weights) for
        a folder that is no EXAONE 4 checkpoint. Each error names the file.
        """
        folder = find_folder(path_or_repo, revision)
        config = Exaone4Config.from_file(folder / "config.json", **changes)
        return load_network(cls, folder, config, backbone=cls.backbone, dtype=dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors into a folder, which is created if it does not exist.

        Both files are replaced if they exist. transformers and `from_pretrained` read the folder. Raises ValueError for
        a network with other parameters than the architecture's (quantized, or with adapters), and FileExistsError for a
        folder with other weight files, which would be read instead.
        """
        for name, part in self.named_modules():
            ours = type(part).__module__.startswith(__package__) and not isinstance(part, nn.QuantizedLinear)
            if type(part) not in PLAIN and not ours:
                raise ValueError(
                    f"{name} is a {type(part).__name__}, which {type(self).__name__} does not have: "
                    "dequantize or fuse it first (convert writes quantized checkpoints)"
                )
        weights, folder = named_parameters(self), Path(folder).expanduser()
        others = {file.name for file in folder.glob("*model*.safetensors*")} - {"model.safetensors"}
        if others:
            raise FileExistsError(f"{folder} holds another checkpoint ({min(others)}); choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        dtype = str(next(iter(weights.values())).dtype).removeprefix("mlx.core.")
        with atomic_file(folder / "model.safetensors") as stream:
            mx.save_safetensors(stream, weights, metadata={"format": "mlx"})  # type: ignore[arg-type]
            self.config.save_pretrained(folder, architectures=[type(self).__name__], dtype=dtype)


def new_linear(config: Exaone4Config, inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A projection with new weights: normal, with the standard deviation `initializer_range`."""
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
