"""Fixtures of the browser tests: Chromium, servers with the demo, and a tab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Server, Tab, endless_model, launch, opened
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright, launch(playwright) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo, for all tests that need nothing else."""
    with Server(tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture(scope="module")
def endless(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A demo whose replies do not end by themselves."""
    folder = tmp_path_factory.mktemp("endless")
    with Server(folder / "data", model=str(endless_model(folder / "model"))) as server:
        yield server


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    with opened(browser, server) as tab:
        yield tab
