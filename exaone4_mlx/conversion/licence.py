"""Where weights come from, and the licence that applies to them.

Notes:
- A local source is named only by its folder: a path names the user.
- Weights of this architecture count as EXAONE's unless their card says otherwise (`is_exaone`).
- Of a source card's YAML only text and lists of text are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
MAX_FRONT_MATTER = 50_000  # characters

EXAONE_NOTICE = (
    "The EXAONE AI Model License Agreement 1.2 - NC applies: research and education only. No commercial use of the "
    'model, of what is derived from it, or of its output. A derivative\'s name begins with "EXAONE", and the text of '
    "the licence goes with it."
)


def public_origin(origin: str) -> str:
    """The public name of an origin: "demo", a hub id, or the name of a folder without its path (it names the user).

    A snapshot in the hub's cache becomes its hub id, and a folder called demo becomes "./demo".
    """
    if origin == "demo":
        return origin
    path = Path(origin).expanduser()
    if not _exists(path) and REPO_ID.fullmatch(origin):
        return origin
    if path.name in ("", ".."):
        path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    if not path.name or path == Path.home():
        return "a local folder"
    return "./demo" if path.name == "demo" else path.name


def is_exaone(origin: str, card: str | None) -> bool:
    """Whether the EXAONE licence applies to weights from `origin`, whose model card is `card`.

    It applies to every model of this architecture, except the demo, and except models whose card names another
    licence, no base model of LG (`base_model`), and no name that begins with EXAONE.
    """
    name = public_origin(origin)
    if name == "demo":
        return False
    fields = front_matter(card or "")
    bases = [name, *as_list(fields.get("base_model"))]
    if any(base.startswith("LGAI-EXAONE/") for base in bases) or name.rpartition("/")[2].startswith("EXAONE"):
        return True
    licences = [item for item in as_list(fields.get("license")) if item not in ("", "other", "unknown")]
    licences += as_list(fields.get("license_name"))
    return not licences or any("exaone" in item.casefold() for item in licences)


def front_matter(text: str) -> dict[str, str | list[str]]:
    """The scalars and lists of scalars in a card's YAML header, as text. Other values are skipped."""
    header = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text[:MAX_FRONT_MATTER], re.DOTALL)
    if not header:
        return {}
    import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub

    try:
        values = yaml.load(header[1], Loader=yaml.BaseLoader)  # BaseLoader: text, lists and mappings only
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    found: dict[str, str | list[str]] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        scalars = value if isinstance(value, list) else [value]
        if isinstance(key, str) and all(isinstance(item, str) for item in scalars):
            found[key] = value
    return found


def source_card(folder: Path) -> str | None:
    """The model card of a source folder, if it has one."""
    file = folder / "README.md"
    return file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else None


def licence_fields(origin: str, files: Sequence[str], source_card: str | None) -> dict[str, str | list[str]]:
    """Those of the source card that the hub accepts; LG's for a repository of LG without a card."""
    if origin == "demo":
        return {"license": "mit"}
    source = front_matter(source_card or "")
    fields: dict[str, str | list[str]] = {}
    licences = [item for item in as_list(source.get("license")) if re.fullmatch(r"[\w.+-]{1,64}", item)]
    if licences:
        fields["license"] = licences[0] if len(licences) == 1 else licences
        if name := one_line(str(source.get("license_name") or "")):
            fields["license_name"] = name[:100]
        link = one_line(str(source.get("license_link") or ""))
    elif origin.startswith("LGAI-EXAONE/"):
        fields, link = {"license": "other", "license_name": "exaone"}, "LICENSE"
    else:
        return {}
    if re.fullmatch(r"https?://[^\s<>\"]+", link) or link in files:
        fields["license_link"] = link
    elif re.fullmatch(r"[\w.-]+", link) and REPO_ID.fullmatch(origin):  # a file of the source repository
        fields["license_link"] = f"https://huggingface.co/{origin}/blob/main/{link}"
    return fields


def one_line(text: str) -> str:
    """The text without control, separator and unpaired characters, with single spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value
