"""Sizes in bytes as text."""

from __future__ import annotations


def size_text(count: int) -> str:
    """A number of bytes in kB, MB or GB, each a power of 1,000."""
    if 0 < count < 1e6:
        return f"{count / 1e3:,.0f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
