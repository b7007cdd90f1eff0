"""The sizes of the part of a model that one of several ranks has."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint.quantize import Quantization
from ..checkpoint.share import Share, Stage, part_of
from ..cluster.ranks import Ranks
from .sizes import Sizes


def ranked(sizes: Sizes, ranks: int | Ranks, quantization: Quantization | None) -> Sizes:
    """The sizes of rank 0 of so many ranks, or of this process among `ranks`, of a model that is to be quantized so."""
    if not isinstance(ranks, Ranks):
        if type(ranks) is not int or ranks < 1:
            raise ValueError(f"ranks must be a positive whole number, not {ranks!r}")
        return sizes if ranks == 1 else sizes_of_part(sizes, Share(0, ranks), quantization)
    return sizes_of_part(sizes, part_of(ranks, sizes.config, sizes.tensors.values()), quantization)


def sizes_of_part(sizes: Sizes, part: Share | Stage, quantization: Quantization | None) -> Sizes:
    """The sizes of one rank, of a model that is to be quantized so."""
    settings = {name: tensor.exact or quantization for name, tensor in sizes.tensors.items()}
    grouped = {name: chosen for name, chosen in settings.items() if chosen is not None}
    divided, tensors = part.divided(sizes.config), {name: t for name, t in sizes.tensors.items() if part.has(name)}
    part.check_groups(grouped, {name: tensor.shape for name, tensor in sizes.tensors.items()})
    for name, tensor in tensors.items():
        if cut := part.cut(name):
            tensors[name] = replace(tensor, shape=cut.shape(tensor.shape), nbytes=tensor.nbytes // cut.size)
    return replace(sizes, config=sizes.config.replace(**divided), tensors=tensors)
