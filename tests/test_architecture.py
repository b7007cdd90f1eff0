"""The structure of the package, read from the sources: who imports whom, and how large things are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "exaone4_mlx"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "demo" not in path.parts)
APP = sorted((ROOT / "app").glob("*.py"))

#: The rooms of the package, lowest first. A file imports from its own room and from rooms before it.
ROOMS = [
    "files",
    "cluster",
    "tools",
    "text",
    "storage",
    "checkpoint",
    "model",
    "generation",
    "conversation",
    "conversion",
    "measure",
    "tuning",
    "server",
    "terminal",
    "cli",
    "notebook",
    "",  # the files of the package itself: fronts and public names
]
#: Bounds of size. MOST_LINES is set to what is there; it goes down, and up only with a feature.
MOST_LINES = {"exaone4_mlx": 38_145, "tests": 40_965, "app": 4_400}
LONG_FILE, MOST_LONG_FILES = 300, 4  # lines
LONGEST_FILE, LONGEST_APP_FILE = 400, 350  # lines
MOST_PARAMETERS = 12

APP_ORDER = [
    "i18n", "settings", "models", "work", "tools", "record", "session", "details", "markdown", "render", "frames", "engine", "titles", "state",
    "status", "theme", "widgets", "common", "chat_actions", "listing", "model_actions", "actions", "api", "ui", "server", "beside", "__main__",
]  # fmt: skip
#: The flags that all programs share, what Markdown means, and the models at hand.
APP_SHARES = {
    ("__main__.py", "exaone4_mlx.cli.flags"),
    ("__main__.py", "exaone4_mlx.cli.help"),
    ("__main__.py", "exaone4_mlx.cli.program"),
    ("__main__.py", "exaone4_mlx.cli"),  # ranks
    ("__main__.py", "exaone4_mlx.cli.prompt_cache"),
    ("__main__.py", "exaone4_mlx.server.address"),
    ("server.py", "exaone4_mlx.server.address"),
    ("markdown.py", "exaone4_mlx.text.markdown"),
}
APP_MODULES = {
    "exaone4_mlx",
    "exaone4_mlx.files.attachments",
    "exaone4_mlx.files.text",
    "exaone4_mlx.measure.library",
    "exaone4_mlx.measure.model_jobs",
    *(f"exaone4_mlx.storage.{name}" for name in ("branches", "forms", "search", "store", "transcript", "turns")),
    "exaone4_mlx.text.format",
    "exaone4_mlx.text.live_messages",
    "exaone4_mlx.text.message",
}  # any file of the app
WITH_GRADIO = set(APP_ORDER[APP_ORDER.index("theme") :])
#: Packages that are imported where they are used, so that a command pays for what it uses.
AT_CALL_ONLY = {
    "transformers", "mlx_lm", "huggingface_hub", "tqdm", "jsonschema", "referencing", "llguidance", "rich", "prompt_toolkit",
    "IPython", "ipywidgets", "matplotlib", "markdown_it", "mcp", "httpx2", "pydantic",
}  # fmt: skip
#: These files are imported inside functions only, and so may import what they use at their head.
AT_CALL_FILES = {f"terminal/{name}.py" for name in ("screen", "drawing", "markdown", "input")} | {"text/arrays.py"}
AT_CALL_FILES |= {f"server/{file.stem}.py" for file in (PACKAGE / "server").glob("*.py")} - {
    f"server/{name}.py" for name in ("__init__", "address")
}
PRINTING_FILES = {"cli/output.py"}


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def room_of(file: Path) -> str:
    return file.parent.relative_to(PACKAGE).as_posix().removeprefix(".")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path, top_level_only: bool = False) -> list[tuple[str, ...]]:
    """What a file imports, as dotted parts: relative imports resolved; those in functions and for type checkers too."""
    tree = tree_of(file)
    found = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = (*package, *(node.module.split(".") if node.module else ()))
            found += [(*module, alias.name) for alias in node.names]  # `from . import x` may name a module
    return found


def imported_files(file: Path) -> set[Path]:
    """The files of the package that a file imports. Public names come from __init__.py, which is no edge."""
    found = set()
    for parts in imports(file):
        for length in (len(parts), len(parts) - 1):
            target = ROOT.joinpath(*parts[:length]).with_suffix(".py")
            if length and target in FILES and target != file:
                found.add(target)
                break
    return found


@cache
def edges() -> dict[Path, set[Path]]:
    return {file: imported_files(file) for file in FILES}


def test_imports_point_down() -> None:
    order = {room: place for place, room in enumerate(ROOMS)}
    assert {room_of(file) for file in FILES} == set(ROOMS)
    up = {
        (name_of(file), name_of(target))
        for file, targets in edges().items()
        for target in targets
        if order[room_of(target)] > order[room_of(file)] and file != PACKAGE / "__init__.py"
    }
    assert not up, "a room imports from a room above it"


def test_no_circle_of_files() -> None:
    """Files are removed that import nothing that is left. A circle is what remains."""
    left = dict(edges())
    while leaves := [file for file, targets in left.items() if not targets & left.keys()]:
        for file in leaves:
            del left[file]
    assert not left, f"these files, or files that they import, form a circle: {sorted(map(name_of, left))}"


def lines_of(file: Path) -> int:
    return file.read_text().count("\n")


def test_files_are_short() -> None:
    long = sorted(((lines_of(file), name_of(file)) for file in FILES if lines_of(file) > LONG_FILE), reverse=True)
    assert len(long) <= MOST_LONG_FILES, f"{len(long)} files have over {LONG_FILE} lines: {long}"
    assert long[0][0] <= LONGEST_FILE, f"{long[0]} is the longest file"


def test_package_app_and_tests_do_not_grow() -> None:
    files = {"exaone4_mlx": FILES, "tests": (ROOT / "tests").rglob("*.py"), "app": APP}
    counts = {name: sum(map(lines_of, found)) for name, found in files.items()}
    assert all(counts[name] <= most for name, most in MOST_LINES.items()), f"{counts} lines, and at most {MOST_LINES}"


def test_files_of_the_app_are_short() -> None:
    longest = max(APP, key=lines_of)
    assert lines_of(longest) <= LONGEST_APP_FILE, f"{longest.name} has {lines_of(longest)} lines"


def test_functions_have_few_parameters() -> None:
    found = set()
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                names = {argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
                if len(names - {"self", "cls"}) > MOST_PARAMETERS:
                    found.add((name_of(file), node.name))
    assert not found, f"over {MOST_PARAMETERS} parameters; a dataclass is due"


def test_a_class_name_has_one_meaning() -> None:
    """In the package and the app together; a leading underscore makes no other name."""
    files: dict[str, set[Path]] = {}
    for file in (*FILES, *APP):
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name.lstrip("_"), set()).add(file)
    several = {name: found for name, found in files.items() if len(found) > 1}
    assert not several, f"one name, several classes: {several}"


def test_text_tools_storage_and_config_do_not_import_mlx() -> None:
    """Except arrays.py, which a function imports when a caller asks for an MLX array."""
    rooms = ("text", "tools", "storage")
    pure = {file for room in rooms for file in (PACKAGE / room).glob("*.py")} - {PACKAGE / "text" / "arrays.py"}
    for file in [*pure, *(PACKAGE / "model" / f"{name}.py" for name in ("config", "config_keys", "rope"))]:
        assert not any(parts[0] == "mlx" for parts in imports(file)), file


def test_the_package_never_imports_torch_or_the_app() -> None:
    for file in FILES:
        assert not {"torch", "app"} & {parts[0] for parts in imports(file)}, file


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    heavy = {PACKAGE.joinpath(name).relative_to(ROOT).with_suffix("").parts for name in AT_CALL_FILES}
    for file in FILES:
        top = imports(file, top_level_only=True)
        assert name_of(file) in AT_CALL_FILES or not AT_CALL_ONLY & {parts[0] for parts in top}, file
        assert name_of(file) in AT_CALL_FILES or not heavy & {
            parts[:length] for parts in top for length in (len(parts), len(parts) - 1)
        }, file


def test_fronts_are_imported_by_nothing() -> None:
    """A module that is both run and imported exists twice, and its classes do not match themselves."""
    fronts = {PACKAGE / f"{name}.py" for name in ("generate", "chat", "__main__")}
    for file, targets in edges().items():
        assert not fronts & targets, file


def test_only_the_command_line_prints() -> None:
    for file in FILES:
        calls = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call)]
        printed = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printed or name_of(file) in PRINTING_FILES, file


def test_no_test_file_imports_another() -> None:
    """What they share is in conftest.py, or in a module beside it."""
    line_of_an_import = re.compile(r"^\s*(?:from|import)\s.*\btest_\w+", re.MULTILINE)  # in a text too
    for file in (ROOT / "tests").rglob("*.py"):
        if line_of_an_import.search(file.read_text()):  # parsing all of them takes a second
            assert not [part for parts in imports(file) for part in parts if part.startswith("test_")], file


def test_every_folder_is_in_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML by itself")
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(f.parent.relative_to(ROOT).parts) for f in PACKAGE.rglob("__init__.py")}
    others = ("app", "app.page", "app.vendor", "app.words", "demo", "demo.draft", "texts")
    assert found | {f"exaone4_mlx.{name}" for name in others} == packages


def test_app_uses_public_names_only() -> None:
    import exaone4_mlx

    for file in APP:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "exaone4_mlx":
                if (file.name, node.module) in APP_SHARES:
                    continue
                assert node.module in APP_MODULES, f"{file.name} imports from {node.module}"
                if node.module == "exaone4_mlx":
                    assert {alias.name for alias in node.names} <= set(exaone4_mlx.__all__), file


def test_files_of_the_page_are_joined_and_short() -> None:
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    from app.theme import HERE, LIST_SCRIPT, MODELS_SCRIPT, SCRIPT, STYLES

    names = {
        "chat.html",
        "list.html",
        "models.html",
        *(f"{name}.js" for name in {*SCRIPT, *LIST_SCRIPT, *MODELS_SCRIPT}),
        *(f"{name}.css" for name in STYLES),
    }
    assert {file.name for file in HERE.iterdir()} == names, "a file of app/page/ is not joined"
    assert max(lines_of(file) for file in HERE.iterdir()) <= 350


def test_app_files_import_in_order_and_few_import_gradio() -> None:
    for file in APP:
        if file.stem == "__init__":
            continue
        for parts in imports(file):
            if parts[0] == "app" and len(parts) > 1 and parts[1] in APP_ORDER:
                assert APP_ORDER.index(parts[1]) < APP_ORDER.index(file.stem), f"{file.stem} must come after {parts[1]}"
            assert parts[0] != "gradio" or file.stem in WITH_GRADIO, file
        assert "print(" not in file.read_text() or file.stem == "server"
        if file.stem in ("i18n", "details", "markdown", "render"):
            assert not any(parts[0] == "mlx" for parts in imports(file)), "pure Python, tested in milliseconds"
