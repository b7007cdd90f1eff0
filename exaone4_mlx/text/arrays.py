"""MLX arrays of token ids. The only file of this folder that imports MLX; it is imported inside functions only."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

DEVICES = ("auto", "cpu", "gpu", "mps")


class TokenArray(mx.array):
    """An MLX array with torch's `to`, which code for transformers calls. Results of operations are plain arrays."""

    def to(self, device: Any) -> TokenArray:
        """Itself: MLX arrays are in memory that all devices share. Raises ValueError for a device that MLX lacks."""
        check_device("device", device)
        return self


def check_device(name: str, device: Any) -> None:
    """Raises ValueError for a device that MLX does not have."""
    if not isinstance(device, (mx.Device, mx.DeviceType)) and str(device).partition(":")[0] not in DEVICES:
        raise ValueError(f"{name} must be one of {', '.join(DEVICES)} or an mx.Device, not {device!r}")
