"""README.md and docs/ agree with the code: their Python runs, their flags exist, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

import exaone4_mlx
from exaone4_mlx import fit, load
from exaone4_mlx.cli import main as cli
from exaone4_mlx.cli.main import COMMANDS

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {file.stem: file.read_text(encoding="utf-8") for file in FILES}
EVERYTHING = "\n".join(PAGES.values())
OF_OTHER_PROGRAMS = set(
    "--version --seed --python --backend --hostfile --no-index --find-links --local-dir --to --execute --output-dir --strict".split()
) | {
    "--CoalesceStreamsPreprocessor",
    "--over",
    "--hosts",
    "--auto-setup",
    "--output-hostfile",
    "--env",
}  # the last five of MLX
SNIPPETS = re.findall(r"```python\n(.*?)```", EVERYTHING, re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*new here")  # as the text beside it says
@pytest.mark.parametrize(
    "snippet", [pytest.param(text, marks=pytest.mark.heavy) if "tune(" in text else text for text in SNIPPETS]
)
def test_snippets_run_and_print_what_they_say(
    snippet: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, which a CPU computes several times faster than the demo's own bfloat16."""
    monkeypatch.setattr(exaone4_mlx, "load", lambda model, dtype="float32": load(model, dtype=dtype))
    exec(compile(snippet, "docs", "exec"), {})
    out = capsys.readouterr().out
    assert out
    for line in re.findall(r"^# (.+)$", snippet, re.MULTILINE):
        assert line in out


def test_the_documented_model_is_covered_as_it_says() -> None:
    """Every test of the table exists. A name without a file is in the file that was named last."""
    table = PAGES["documented-model"].partition("| documented | covered by |")[2].partition("\n\n")[0]
    file = ""
    cited = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", table)
    assert len(cited) > 40
    for named, test in cited:
        file = named or file
        [path] = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), f"{file} has no {test}"


def test_every_documented_name_has_a_place(shared: Path) -> None:
    """Each argument and key of the documentation that the project answers to."""
    page = (shared / "research" / "transformers-exaone4-docs.txt").read_text()
    table = PAGES["documented-model"]
    signatures = " ".join(re.findall(r"source >\((.*)", page))
    parameters = set(re.findall(r"(\w+)\s*(?:=|: typing)", signatures)) | set(
        re.findall(r"^- +(\w+) \(", page, re.MULTILINE)
    )
    keys = set(re.findall(r"(\w+) \((?:float|int|str|List\[float\]), ?optional", page))
    assert len(parameters | keys) > 40
    missing = {name for name in (parameters | keys) - {"config", "kwargs"} if f"`{name}`" not in table}
    assert not missing, missing


def test_flags_that_it_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from app.__main__ import main as app

    for program, *command in [[cli.main, command] for command in COMMANDS] + [[app]]:
        with pytest.raises(SystemExit):
            program([*command, "--help-all"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    for name in PAGES.keys() - {"measurements"}:  # that page has commands of other programs
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGES[name]))
        assert named <= known | OF_OTHER_PROGRAMS, f"{name}: {named - known - OF_OTHER_PROGRAMS}"


def test_public_names_are_documented() -> None:
    for name in exaone4_mlx.__all__:
        assert name in EVERYTHING or name.startswith("__"), f"{name} is public, and the documentation does not name it"


def test_tree_names_every_room() -> None:
    tree = PAGES["how-it-works"].partition("pyproject.toml  LICENSE")[2].partition("```")[0]
    for room in (ROOT / "exaone4_mlx").iterdir():
        if (room / "__init__.py").exists():
            assert f" {room.name}/" in tree, f"{room.name}/ has no place in the tree of docs/how-it-works.md"


def test_the_contexts_that_fit_are_those_of_fit(shared: Path) -> None:
    """Rows of docs/which-model.md: the memory, then the tokens for 16, 8 and 4 bits, and for 4 bits with `--kv-bits 8`."""
    for size in ("1.2B", "32B"):
        config = shared / "configs" / f"EXAONE-4.0-{size}.config.json"
        table = PAGES["which-model"].partition(f"**EXAONE 4.0 {size}**")[2].partition("\n\n|")[2].partition("\n\n")[0]
        for memory, *cells in re.findall(
            r"^\| (\d+) GB[^|]*\| ([\d,–]+) \| ([\d,–]+) \| ([\d,–]+) \|(?: ([\d,–]+) \|)?", table, re.M
        ):
            for cell, options in zip(cells, ({}, {"q_bits": 8}, {"q_bits": 4}, {"q_bits": 4, "kv": 8}), strict=True):
                largest = fit(config, memory=int(memory), metal=True, **options).largest_context
                assert cell in ("", f"{largest:,}" if largest else "–"), (size, memory, options, largest)


def test_the_readme_is_short() -> None:
    assert len(PAGES["README"].splitlines()) <= 120


def test_links_and_pictures_exist() -> None:
    """Links to files, and to headings as MkDocs and GitHub name them. Pages in docs/ link nothing outside of it."""
    for file in [*FILES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)):
            if link.startswith(("https://", "http://", "mailto:")):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / path).resolve() if path else file
            assert target.exists(), f"{file.name}: {link}"
            assert file.parent == ROOT or target.is_relative_to(ROOT / "docs"), f"{file.name}: {link} leaves docs/"
            if anchor:
                assert anchor in _anchors(target.read_text()), f"{file.name}: {link}"


def _anchors(page: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}
