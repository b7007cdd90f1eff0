"""Fixtures of the browser tests: Chromium, servers with the demo, and a tab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio", reason="the app needs the extra `app`")
    pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")
    from browser import CHROMIUM, launch
    from playwright.sync_api import sync_playwright

    if not Path(CHROMIUM).exists():
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright, launch(playwright) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The demo, for all tests that need nothing else."""
    from browser import Server

    with Server(tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture(scope="module")
def endless(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A demo whose replies do not end by themselves."""
    from browser import Server, endless_model

    folder = tmp_path_factory.mktemp("endless")
    with Server(folder / "data", model=str(endless_model(folder / "model"))) as server:
        yield server


@pytest.fixture
def tab(browser: Any, server: Any) -> Iterator[Any]:
    from browser import opened

    with opened(browser, server) as tab:
        yield tab
