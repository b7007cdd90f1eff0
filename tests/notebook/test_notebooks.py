"""The notebooks: stripped, on public names only, and run from top to bottom without a network."""

from __future__ import annotations

import ast
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from strip_notebooks import METADATA, NOTEBOOKS, stripped, written

import exaone4_mlx
from exaone4_mlx import notebook as helpers

HUB_IDS = ("LGAI-EXAONE/EXAONE-4.0-1.2B", "LGAI-EXAONE/EXAONE-4.0-32B")
PACKAGES = {"mlx", "mlx_lm", "matplotlib"}
NETWORK = {"ftplib", "http", "socket", "ssl", "urllib", "webbrowser"}  # of the standard library
LONGEST_LINE = 100
SECONDS = 240  # for one notebook

#: What its outputs hold when it shows what its text says.
SHOWN = {
    "1_quickstart": (
        "The capital of South Korea is Seoul.",
        "478 + 467 = 945.",
        "623 + 7 = 630.",
        "Your name is Mina.",
        "all of them kept: True",
    ),
    "2_tools": (
        "get_weather gave",
        "You rolled 3 and 7.",
        "1234 * 56 = 69104.",
        "approved? no",
        "3 rounds of calls",
        "8, 20, not 6",
    ),
    "3_inside_the_model": ("16 layers see everything, no RoPE", "a local layer of demo sees 32", "last position: "),
    "4_convert_and_measure": ("4bit-quality: 4.84 bits a weight", "4 bits: 348 + 275 = 623."),
    "5_long_context_and_speed": (
        "Your name is Mina.",
        "the same reply: True",
        "with a draft: ",
        "4 bits, all layers: mean KL",
    ),
    "6_fine_tune": (
        "The capital of Orulia is Kestrel.    [new]",
        "four bits: The capital of Orulia is Kestrel.",
        "fused: The capital of Orulia is Kestrel.",
    ),
}


def test_there_are_six() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(SHOWN)


# --- what is in them --------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stripped_and_on_public_names_only(path: Path) -> None:
    assert not list(problems(path.read_text(encoding="utf-8")))


def problems(text: str) -> Iterator[str]:
    """What a notebook in git must not be."""
    if text != stripped(text):
        yield "it holds outputs or the traces of a session: python tests/strip_notebooks.py"
    cells = json.loads(text)["cells"]
    code = {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}
    prose = {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"}
    ids = [cell["id"] for cell in cells]
    if len(set(ids)) < len(ids) or not all(re.fullmatch("[a-z-]+", id) for id in ids):
        yield "cells need names of their own as ids, of lower-case letters"
    for name, source in prose.items():
        for file in re.findall(r"\]\((?!http)([^)]+)\)", source):
            if not (NOTEBOOKS[0].parent / file).is_file():
                yield f"{name} links to {file}, which is not there"
    yield from problems_of_the_choice(code)
    for name, source in code.items():
        if any(len(line) > LONGEST_LINE for line in source.splitlines()):
            yield f"{name} has a line of more than {LONGEST_LINE} characters"
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            yield f"{name} is no Python: {error.msg}"
        else:
            for node in ast.walk(tree):
                yield from (f"{name} {problem}" for problem in problems_of_a_node(node))


def problems_of_the_choice(code: dict[str, str]) -> Iterator[str]:
    """One cell, before any model is loaded, says what to change for the real ones."""
    naming = [name for name, source in code.items() if any(id in source for id in HUB_IDS)]
    if len(naming) != 1 or not all(id in code[naming[0]] for id in HUB_IDS):
        yield "one cell must name the 1.2B and the 32B"
    elif naming[0] != next(iter(code)) or '\nMODEL = "demo"\n' not in code[naming[0]]:
        yield "the cell that names the models must be the first, and choose the demo"


def problems_of_a_node(node: ast.AST) -> Iterator[str]:
    """What code in a notebook must not do."""
    modules: list[str] = []
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
        public = {"exaone4_mlx": exaone4_mlx.__all__, "exaone4_mlx.notebook": helpers.__all__}
        for alias in node.names:
            if alias.name.startswith("_") or alias.name not in public.get(modules[0], (alias.name,)):
                yield f"imports {alias.name}, which is not public in {modules[0]}"
    elif isinstance(node, ast.Attribute) and re.match("_(?!_.*__$)", node.attr):
        yield f"uses {node.attr}, which is not public"
    elif isinstance(node, ast.Constant) and re.match("https?://", str(node.value)):
        yield f"names {node.value}: there is no network"
    for module in modules:
        package = module.split(".")[0]
        known = package in PACKAGES or (package in sys.stdlib_module_names and package not in NETWORK)
        if package == "exaone4_mlx" and (isinstance(node, ast.Import) or module not in public):
            yield f"imports {module}, which is not public"
        elif package != "exaone4_mlx" and not known:
            yield f"imports {module}, which a notebook must do without"


def cell_of(notebook: dict[str, Any], place: int = 1) -> dict[str, Any]:
    """A code cell; the first one is the choice of the model."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][place]


def saying(line: str) -> Callable[[dict[str, Any]], None]:
    return lambda notebook: cell_of(notebook)["source"].append(f"\n{line}")


def without(text: str) -> Callable[[dict[str, Any]], None]:
    def change(notebook: dict[str, Any]) -> None:
        cell = cell_of(notebook, 0)
        cell["source"] = [line.replace(text, "") for line in cell["source"]]

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda notebook: cell_of(notebook).update(execution_count=3), "holds outputs"),
        (lambda notebook: cell_of(notebook)["outputs"].append({"output_type": "stream"}), "holds outputs"),
        (lambda notebook: notebook.update(nbformat_minor=4), "traces of a session"),
        (lambda notebook: notebook["metadata"].update(toc={}), "traces of a session"),
        (lambda notebook: cell_of(notebook)["metadata"].update(collapsed=True), "traces of a session"),
        (lambda notebook: cell_of(notebook).update(id="title"), "ids"),
        (lambda notebook: cell_of(notebook).update(id="8f3a01"), "ids"),
        (lambda notebook: notebook["cells"][0]["source"].append("[this](7_more.ipynb)"), "7_more.ipynb, which"),
        (without("LGAI-EXAONE/EXAONE-4.0-32B"), "must name the 1.2B and the 32B"),
        (saying("model = 'LGAI-EXAONE/EXAONE-4.0-1.2B'"), "must name the 1.2B and the 32B"),
        (without('MODEL = "demo"'), "choose the demo"),
        (lambda notebook: notebook["cells"].reverse(), "must be the first"),
        (saying("#" * 101), "more than 100 characters"),
        (saying("%matplotlib inline"), "is no Python"),
        (saying("from exaone4_mlx.model.cache import KVCache"), "exaone4_mlx.model.cache, which is not public"),
        (saying("from exaone4_mlx import KVCache"), "imports KVCache, which is not public"),
        (saying("from exaone4_mlx.notebook import LiveTurn"), "imports LiveTurn, which is not public"),
        (saying("import exaone4_mlx.weights"), "exaone4_mlx.weights, which is not public"),
        (saying("import pandas"), "imports pandas"),
        (saying("import urllib.request"), "imports urllib.request"),
        (saying("print(model._layers)"), "uses _layers"),
        (saying("page = 'https://huggingface.co'"), "there is no network"),
    ],
)
def test_what_must_not_be_is_found(change: Callable[[dict[str, Any]], None], expected: str) -> None:
    notebook = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    change(notebook)
    found = list(problems(written(notebook)))
    assert any(expected in problem for problem in found), found


def test_a_dunder_name_is_public() -> None:
    assert not list(problems_of_a_node(ast.parse("tool.__name__").body[0].value))  # type: ignore[attr-defined]


# --- running them -----------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """Runs a notebook where there is no network, and returns what it printed."""
    for package in ("nbclient", "ipywidgets", "matplotlib"):
        pytest.importorskip(package, reason="notebooks run with the extra `notebook`")
    import nbclient
    import nbformat

    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens

    def run(content: dict[str, Any]) -> str:
        notebook = nbformat.reads(json.dumps(content), as_version=4)
        settings = {"timeout": SECONDS, "kernel_name": "python3", "resources": {"metadata": {"path": str(here)}}}
        nbclient.NotebookClient(notebook, **settings).execute()  # raises what a cell raises
        printed = {"stdout": "", "stderr": ""}
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                if output.output_type == "stream":
                    printed[output.name] += output.text
        assert not printed["stderr"], f"it warns: {printed['stderr']}"
        assert not list(here.iterdir()), "it writes where it runs"
        left = {path.name for path in temporary.iterdir()} - {"mlx"}  # MLX's CPU backend keeps what it compiled
        assert not left, f"it does not clean up: {left}"
        return printed["stdout"]

    return run


@pytest.mark.heavy
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom_without_a_network(path: Path, run: Callable[[dict[str, Any]], str]) -> None:
    started = time.monotonic()
    printed = run(json.loads(path.read_text(encoding="utf-8")))
    assert time.monotonic() - started < SECONDS
    missing = [text for text in SHOWN[path.stem] if text not in printed]
    assert not missing, printed


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import warnings\nwarnings.warn('this is old')", "this is old"),
        ("open('left.txt', 'w').close()", "it writes where it runs"),
        ("import tempfile\ntempfile.mkdtemp()", "it does not clean up"),
        ("from exaone4_mlx import load\nload('LGAI-EXAONE/EXAONE-4.0-1.2B')", "Error"),
    ],
)
def test_what_must_not_happen_is_found(source: str, expected: str, run: Callable[[dict[str, Any]], str]) -> None:
    cell = {"cell_type": "code", "id": "wrong", "metadata": {}, "outputs": [], "execution_count": None}
    with pytest.raises(Exception, match=expected):
        run({"cells": [{**cell, "source": source}], "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})
