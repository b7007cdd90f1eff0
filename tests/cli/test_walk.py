"""How far a command walks before its first token: the files that are called, and the renders of the chat template."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT

COUNT = """
import os, sys, threading
import exaone4_mlx
root, files, renders = os.path.dirname(exaone4_mlx.__file__) + os.sep, set(), []
def profile(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_flags & 1 and code.co_filename.startswith(root):  # functions, no bodies of classes
        files.add(code.co_filename[len(root):])
        renders.extend([1] * (code.co_name == "render" and code.co_filename.endswith("template.py")))
class Out:
    isatty, flush = (lambda self: False), (lambda self: None)
    def write(self, text):
        sys.setprofile(None); threading.setprofile(None)
        os.write(2, f"{len(files)} {len(renders)} {sorted(files)}".encode()); os._exit(0)
sys.argv = ["exaone4-mlx", "generate", "--model", "demo", "-p", "Hello"]
threading.setprofile(profile); sys.setprofile(profile)
sys.stdout = Out()
from exaone4_mlx.cli.main import main
main()
"""


def test_generate_calls_few_files_and_renders_once_before_its_first_token() -> None:
    ended = subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, capture_output=True, text=True, check=False)
    files, renders, names = ended.stderr.split(" ", 2)
    assert int(renders) == 1, "the chat template is rendered once"
    assert int(files) <= MOST_FILES, names


MOST_FILES = 33
