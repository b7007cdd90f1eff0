"""IPython shows the package's classes by the views of the notebook room."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
from conftest import TINY
from shown import reply, summary

from exaone4_mlx import Chat, Exaone4Config, fit
from exaone4_mlx.notebook.config_view import config_html
from exaone4_mlx.notebook.conversation_view import chat_html, chat_markdown, reply_html, reply_markdown
from exaone4_mlx.notebook.register import VIEWS, register
from exaone4_mlx.notebook.report_view import fit_html, summary_html


def test_ipython_shows_each_registered_class_by_its_view(demo: Any) -> None:
    formatters = pytest.importorskip("IPython.core.formatters", reason="the extra `notebook`")
    display_formatter = formatters.DisplayFormatter()
    register(display_formatter)
    chat = Chat(*demo, messages=[{"role": "user", "content": "*Hello*"}], settle=False)
    for value, html, markdown in (
        (reply(), reply_html, reply_markdown),
        (chat, chat_html, chat_markdown),
        (Exaone4Config.from_dict(TINY), config_html, None),
        (fit("demo"), fit_html, None),
        (summary(), summary_html, None),
    ):
        shown, _ = display_formatter.format(value)
        assert shown["text/html"] == html(value) and shown["text/plain"] == repr(value)
        assert shown.get("text/markdown") == (markdown and markdown(value))


def test_each_registered_class_and_view_exists() -> None:
    for (module, name), (view, functions) in VIEWS.items():
        found = getattr(importlib.import_module(f"exaone4_mlx.{module}"), name)
        assert found.__module__ == f"exaone4_mlx.{module}", f"IPython looks for {name} in the module that defines it"
        for function in functions.values():
            assert callable(getattr(importlib.import_module(f"exaone4_mlx.notebook.{view}"), function))


@pytest.mark.parametrize("when", ["IPython runs before the import", "load_ext after it", "no IPython"])
def test_registration_imports_neither_ipython_nor_views(when: str) -> None:
    shell = "import sys; from IPython.core.interactiveshell import InteractiveShell as S; shell = S.instance()"
    code = {
        "IPython runs before the import": f"{shell}; import exaone4_mlx",
        "load_ext after it": f"import exaone4_mlx; {shell}; shell.run_line_magic('load_ext', 'exaone4_mlx')",
        "no IPython": "import sys, exaone4_mlx; assert 'IPython' not in sys.modules",
    }[when]
    if when != "no IPython":
        pytest.importorskip("IPython", reason="the extra `notebook`")
        code += "; names = {name for _, name in shell.display_formatter.formatters['text/html'].deferred_printers}"
        code += "; assert {'Reply', 'Chat', 'TokenTree'} <= names, names"
    code += "; assert not {'mlx', 'exaone4_mlx.notebook.html'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
