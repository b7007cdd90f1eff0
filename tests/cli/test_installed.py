"""The built package in a fresh environment: the app starts from anywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import tarfile
import time
import urllib.request
import venv
from pathlib import Path

import pytest
from conftest import ROOT
from mcp_servers import free_port

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel of a copy of the sources. What the wheel needs comes from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            place = folder / "source" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((ROOT / name).read_bytes())
    venv.create(folder / "venv", with_pip=False)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(folder / "source")], check=True)
    [wheel] = folder.glob("*.whl")
    own = ["--python", str(folder / "venv" / "bin" / "python")]
    subprocess.run([*pip, *own, "install", "--no-deps", str(wheel)], check=True)
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))  # behind the package of the wheel
    return folder


def started(environment: Path, *command: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = environment / "venv" / "bin" / command[0]
    return subprocess.run(
        [str(program), *command[1:]], cwd=environment, env=clean, capture_output=True, text=True, timeout=120
    )


def test_the_app_answers_from_anywhere(environment: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the app needs the extra `app`")
    port = free_port()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(environment / "venv/bin/exaone4-mlx"), "app", "--model", "demo", "--no-browser"]
    command += ["--port", f"{port}", "--data-dir", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        app = subprocess.Popen(command, cwd=tmp_path, env=clean, stdout=log, stderr=log)
    page = ""
    try:
        until = time.monotonic() + 90
        while not page and time.monotonic() < until and app.poll() is None:
            with contextlib.suppress(OSError):
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read().decode()
            time.sleep(0.1)
        log_text = (tmp_path / "log").read_text()
        assert "EXAONE" in page and "js_on_load" in page, log_text
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/favicon.ico", timeout=10).read()[:4] == b"<svg"
    finally:
        app.send_signal(signal.SIGINT)
        app.wait(30)


def test_the_commands_of_the_installed_package(environment: Path) -> None:
    where = "import app, exaone4_mlx.app.theme as found; print(found.__file__)"
    assert "No module named 'app'" in started(environment, "python", "-c", where).stderr, (
        "no package `app` is installed"
    )
    where = "import exaone4_mlx.app.i18n as found; print(found.__file__)"
    assert str(environment / "venv") in started(environment, "python", "-c", where).stdout
    for command in (("exaone4-mlx", "app", "--help"), ("python", "-m", "exaone4_mlx.app", "--help")):
        shown = started(environment, *command)
        assert shown.returncode == 0 and "--mcp-config" in shown.stdout, shown
    hidden = "import sys; sys.modules['gradio'] = None; from exaone4_mlx.cli.main import main; sys.exit(main(['app']))"
    without = started(environment, "python", "-c", hidden)
    assert without.stderr == "error: the app needs gradio: pip install 'exaone4_mlx[app]'\n", without


def test_the_source_distribution_has_what_its_tests_need(environment: Path, tmp_path: Path) -> None:
    build = "import os, sys; from setuptools import build_meta; os.chdir(sys.argv[1]); print(build_meta.build_sdist(sys.argv[2]))"
    command = [sys.executable, "-c", build, str(environment / "source"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = {
        "app/page/chat.html",
        "app/words/chat.json",
        "tests/conftest.py",
        "tests/tools/test_mcp.py",
        "docs/index.md",
    }
    needed |= {"CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "convert.py", ".ci/run", "tests/goldens/network.json"}
    assert needed <= names, needed - names
