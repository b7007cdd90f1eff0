"""Where weights come from, and whether EXAONE's licence applies to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from exaone4_mlx.conversion.licence import front_matter, is_exaone, public_origin

LG = "LGAI-EXAONE/EXAONE-4.0-1.2B"
LG_CARD = "---\nlicense: other\nlicense_name: exaone\nlicense_link: LICENSE\nlanguage:\n- en\n- ko\n---\n# EXAONE\n"


@pytest.mark.parametrize(
    ("origin", "public"),
    [
        ("demo", "demo"),
        (LG, LG),
        ("/home/mina/models/EXAONE-4.0-1.2B/", "EXAONE-4.0-1.2B"),
        ("~/models/EXAONE", "EXAONE"),
        ("../models/EXAONE", "EXAONE"),
        ("./demo", "./demo"),
        ("/home/mina/demo", "./demo"),
        ("~", "a local folder"),
        ("/", "a local folder"),
        (f"/home/mina/.cache/huggingface/hub/models--{LG.replace('/', '--')}/snapshots/0123abc", LG),
        ("한글/모델", "모델"),
        ("x" * 5000 + "/y", "x" * 5000 + "/y"),  # too long for a file, but a hub id by its form
    ],
)
def test_a_local_origin_becomes_the_name_of_its_folder(origin: str, public: str) -> None:
    assert public_origin(origin) == public
    assert public_origin(public) == public, "the function is idempotent"


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "EXAONE" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "EXAONE" / "sub")
    assert public_origin(".") == "sub"
    assert public_origin("..") == "EXAONE"


@pytest.mark.parametrize(
    ("origin", "card", "expected"),
    [
        (LG, None, True),
        ("mina/own", None, True),
        ("mina/own", "---\nlicense: other\n---\n", True),
        ("mina/own", "---\nlicense: other\nlicense_name: own\n---\n", False),
        ("mina/own", "---\nlicense: mit\n---\n", False),
        ("mina/own", f"---\nlicense: mit\nbase_model: [{LG}]\n---\n", True),
        ("demo", LG_CARD, False),
        ("/home/mina/demo", None, True),
    ],
)
def test_weights_are_exaone_unless_the_card_has_another_licence(origin: str, card: str | None, expected: bool) -> None:
    assert is_exaone(origin, card) is expected


def test_front_matter_has_text_and_lists_of_text() -> None:
    text = '\ufeff---\r\nlicense: "other" # a remark\r\ntags:\r\n- a\r\n- "b"\r\nmodel-index:\r\n- name: x\r\nno: no\r\n---\r\n# Title'
    assert front_matter(text) == {"license": "other", "tags": ["a", "b"], "no": "no"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no top",
        "---\nlicense: mit",
        "---\n: : [\n---\n",
        "---\n- a list\n---\n",
        "---\n" + "[" * 1500 + "\n---\n",
        "---\n!!python/object/apply:os.system ['false']\n---\n",
        "---\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n---\n",
        "---\n\x00\n---\n",
    ],
)
def test_unreadable_front_matter_is_ignored(text: str) -> None:
    assert not {"license", "b", "c"} & front_matter(text).keys()
