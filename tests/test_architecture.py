"""Dependencies run one way: who may import whom, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "exaone4_mlx"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "demo" not in path.parts)

#: folder -> the folders that it may import from, itself aside
ALLOWED = {
    "model": set(),
    "text": set(),
    "weights": {"model", "text", "__version__"},
    "commands": {"model", "weights", "cli", "loading", "bench", "doctor"},
    "generation": {"model", "text"},
    "terminal": {"model", "text", "weights", "generation", "cli", "loading", "__version__"},
}
#: Inside a folder a file imports only files that stand before it.
ORDER = {
    "model": [
        "folders",
        "rope",
        "config",
        "cache",
        "files",
        "outputs",
        "losses",
        "forward",
        "pretrained",
        "layer",
        "network",
        "heads",
    ],
    "text": [
        "template",
        "reply",
        "schema",
        "values",
        "tools",
        "toolbox",
        "calculator",
        "clock",
        "units",
        "builtin_tools",
        "tokenizer",
    ],
    "weights": [
        "quantize",
        "layouts",
        "formats",
        "checkpoint",
        "fit",
        "texts",
        "recipe",
        "plan",
        "shards",
        "search",
        "gptq",
        "distill",
        "blocks",
        "calibrate",
        "evaluate",
        "verify",
        "plot",
        "card",
        "upload",
        "request",
        "partial",
        "converter",
    ],
    "commands": ["evaluate", "convert", "fit", "bench_plot", "bench", "doctor"],
    "generation": [
        "memory",
        "sampling",
        "decode",
        "session",
        "speculate",
        "constrain",
        "ending",
        "respond",
        "owner",
        "turn",
        "conversation",
    ],
    "terminal": ["words", "markdown", "commands", "input", "pipe", "screen", "repl"],
}
APP = sorted((ROOT / "app").glob("*.py"))
APP_ORDER = [
    "words", "store", "transcript", "files", "settings", "markdown", "messages", "models", "session", "desk", "status",
    "widgets", "actions", "api", "ui", "__main__",
]  # fmt: skip
WITH_GRADIO = {"widgets", "actions", "api", "ui", "__main__"}
AT_CALL_ONLY = {
    "transformers", "mlx_lm", "huggingface_hub", "tqdm", "jsonschema", "referencing", "llguidance", "rich", "prompt_toolkit",
    "IPython", "ipywidgets", "matplotlib", "markdown_it",
}  # fmt: skip


#: What reaches up to a folder above, inside a function: how checkpoints are stored, only weights/ knows, and how
#: objects look in a notebook, only display.py, and how a file is written whole, only folders.py.
UPWARD = {
    ("model/pretrained.py", ("exaone4_mlx", "weights", "checkpoint")),
    ("text/tokenizer.py", ("exaone4_mlx", "model", "folders")),
} | {
    (file, ("exaone4_mlx", "display"))
    for file in (
        "model/config.py",
        "weights/evaluate.py",
        "weights/fit.py",
        "weights/converter.py",
        "generation/respond.py",
        "generation/conversation.py",
    )
}

#: What draws and reads a terminal is imported inside functions only, and may import what it likes.
AT_CALL_FILES = {PACKAGE / "terminal" / "screen.py", PACKAGE / "terminal" / "input.py"}


def imports(file: Path, top_level_only: bool = False) -> list[tuple[str, ...]]:
    """What a file imports, as dotted parts; relative imports are resolved. Type-checking blocks do not count."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = (*package, *(node.module.split(".") if node.module else ()))
            # `from . import x` may name a module as well as a thing in the package.
            found += [module] if node.module else [(*module, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file: Path) -> None:
    folder = file.parent.name if file.parent != PACKAGE else ""
    for parts in imports(file):
        assert "torch" not in parts, "the package never needs torch"
        if parts[0] != "exaone4_mlx" or not folder:
            continue
        assert len(parts) > 1, f"{folder}/ must not import the package's own public names"
        if (f"{folder}/{file.name}", parts) in UPWARD:
            assert parts not in imports(file, top_level_only=True)
        elif parts[1] != folder:
            assert parts[1] in ALLOWED[folder], f"{folder}/ must not import {'.'.join(parts)}"
        elif len(parts) > 2:
            order = ORDER[folder]
            assert order.index(parts[2]) < order.index(file.stem), f"{file.stem} stands before {parts[2]}"


def test_every_file_has_its_place_in_the_order() -> None:
    listed = {f"{folder}/{name}.py" for folder, names in ORDER.items() for name in names}
    found = {f"{f.parent.name}/{f.name}" for f in FILES if f.parent != PACKAGE and f.name != "__init__.py"}
    assert found == listed


def test_text_and_config_know_no_mlx() -> None:
    for file in [*(PACKAGE / "text").glob("*.py"), PACKAGE / "model" / "config.py", PACKAGE / "model" / "rope.py"]:
        assert not any(parts[0] == "mlx" for parts in imports(file)), file


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(file: Path) -> None:
    top = imports(file, top_level_only=True)
    assert file in AT_CALL_FILES or not AT_CALL_ONLY & {parts[0] for parts in top}
    assert not {heavy.relative_to(ROOT).with_suffix("").parts for heavy in AT_CALL_FILES} & set(top)


def test_fronts_are_imported_by_nothing() -> None:
    """A module both run and imported exists twice, and its classes do not match themselves."""
    for file in FILES:
        assert not {("exaone4_mlx", name) for name in ("generate", "chat", "__main__")} & set(imports(file)), file
        assert ("exaone4_mlx", "notebook") not in imports(file), file


def test_only_the_command_line_prints() -> None:
    for file in FILES:
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        printed = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printed or file.name == "cli.py", file


def test_every_folder_is_in_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML by itself")
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(f.parent.relative_to(ROOT).parts) for f in PACKAGE.rglob("__init__.py")}
    assert found | {"exaone4_mlx.demo", "exaone4_mlx.demo.draft", "exaone4_mlx.texts"} == packages


@pytest.mark.parametrize("file", APP, ids=lambda file: file.stem)
def test_app_uses_public_names_only(file: Path) -> None:
    import exaone4_mlx

    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "exaone4_mlx":
            assert node.module == "exaone4_mlx", f"{file.name} imports from {node.module}"
            assert {alias.name for alias in node.names} <= set(exaone4_mlx.__all__), file


@pytest.mark.parametrize("file", [file for file in APP if file.stem != "__init__"], ids=lambda file: file.stem)
def test_app_files_stand_in_order_and_few_know_gradio(file: Path) -> None:
    for parts in imports(file):
        if parts[0] == "app" and len(parts) > 1:
            assert APP_ORDER.index(parts[1]) < APP_ORDER.index(file.stem), f"{file.stem} stands before {parts[1]}"
        assert parts[0] != "gradio" or file.stem in WITH_GRADIO, file
    assert "print(" not in file.read_text() or file.stem == "__main__"
    if file.stem in ("messages", "markdown", "words", "store", "transcript", "files"):
        assert not any(parts[0] == "mlx" for parts in imports(file)), "pure Python, tested in milliseconds"
