"""The README says what is so: its Python runs, its flags exist, its tree is the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

import exaone4_mlx
from exaone4_mlx.cli import main as cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*new here")  # as the text beside it says
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run_and_print_what_they_say(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert out
    for line in re.findall(r"^# (.+)$", snippet, re.MULTILINE):
        assert line in out


def test_the_documented_model_is_covered_as_it_says() -> None:
    """Every test of the table exists. A name without a file is in the file that was named last."""
    table = README.partition("| documented | covered by |")[2].partition("\n\n")[0]
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
    table = README.partition("### The documented model")[2].partition("### Errors")[0]
    signatures = " ".join(re.findall(r"source >\((.*)", page))
    parameters = set(re.findall(r"(\w+)\s*(?:=|: typing)", signatures)) | set(
        re.findall(r"^- +(\w+) \(", page, re.MULTILINE)
    )
    keys = set(re.findall(r"(\w+) \((?:float|int|str|List\[float\]), ?optional", page))
    assert len(parameters | keys) > 40
    missing = {name for name in (parameters | keys) - {"config", "kwargs"} if f"`{name}`" not in table}
    assert not missing, missing


def test_flags_that_it_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = set()
    for command in ("generate", "chat", "convert", "evaluate", "fit", "bench", "doctor"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        known |= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    from app.__main__ import parser

    known |= set(re.findall(r"--[\w-]+", parser().format_help()))
    ours = README.partition("## Commands")[2].partition("## Tests")[0]
    ours = "\n".join(line for line in ours.splitlines() if not line.startswith("jupyter "))  # another program's
    assert set(re.findall(r"--[a-z][\w-]+", ours)) <= known


def test_public_names_are_in_the_readme() -> None:
    for name in exaone4_mlx.__all__:
        assert name in README or name.startswith("__"), f"{name} is public, and the README does not name it"


def test_tree_names_every_room() -> None:
    tree = README.partition("pyproject.toml  LICENSE")[2].partition("```")[0]
    for room in (ROOT / "exaone4_mlx").iterdir():
        if (room / "__init__.py").exists():
            assert f" {room.name}/" in tree, f"{room.name}/ has no place in the README's tree"
