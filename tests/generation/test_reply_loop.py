"""Memory limits on Metal: the first of several replies sets them, and the last one restores them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from exaone4_mlx import stream_generate
from exaone4_mlx.generation.reply_loop import KEPT_BYTES, metal_memory


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Simulates a machine with Metal; the values are its limits."""
    limits = {"wired": 7, "cache": 100}

    def setter(name: str) -> Any:
        def set_limit(value: int) -> int:
            before, limits[name] = limits[name], value
            return before

        return set_limit

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 5000})
    monkeypatch.setattr(mx, "set_wired_limit", setter("wired"))
    monkeypatch.setattr(mx, "set_cache_limit", setter("cache"))
    return limits


def test_limits_are_set_while_any_reply_is_made(limits: dict[str, int]) -> None:
    first, second = metal_memory(), metal_memory()
    first.__enter__()
    second.__enter__()
    assert limits == {"wired": 5000, "cache": KEPT_BYTES}
    first.__exit__(None, None, None)
    assert limits == {"wired": 5000, "cache": KEPT_BYTES}, "the second reply is still being made"
    second.__exit__(None, None, None)
    assert limits == {"wired": 7, "cache": 100}


def test_a_closed_reply_restores_the_limits(limits: dict[str, int], unread: Any) -> None:
    stream = stream_generate(*unread, "Hello")
    next(stream)
    assert limits["wired"] == 5000
    stream.close()
    assert limits == {"wired": 7, "cache": 100}


def test_without_metal_no_limits_are_set(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with metal_memory():
        assert limits == {"wired": 7, "cache": 100}
