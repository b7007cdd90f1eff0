"""A converted folder -> a repository on the Hugging Face hub.

What is peculiar here:
- What can be refused is refused before the first request: the name (EXAONE's licence rules it), an unfinished
  folder, a missing licence, the user's own paths in what would be published.
- Only what a conversion writes is sent, by name. What else lies in the folder stays at home.
- `upload_folder` makes one commit of it: weights are never there without card and licence. A second try sends only
  what is not there yet. (`upload_large_folder` is gone in huggingface_hub 2, and would commit in pieces.)
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files.folders import read_json
from ..files.safetensors import INDEX_NAME, Checkpoint
from .kinds import PLOT_NAME
from .licence import EXAONE_NOTICE, is_exaone, one_line

#: What is shown before weights under EXAONE's licence are sent.
NOTICE = f"{EXAONE_NOTICE} By publishing these weights you distribute a derivative of EXAONE under these terms."

WRITTEN = ("config.json", INDEX_NAME, "README.md")
#: What a conversion carries over as it is, where the source has it.
CARRIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
#: What may be published beside the weights, if it is there.
PUBLISHED = (*WRITTEN, "report.json", PLOT_NAME, *CARRIED_FILES)
#: Of these, the ones that may tell where they were made.
TELLTALE = ("config.json", "README.md", "report.json", PLOT_NAME, "tokenizer_config.json", "generation_config.json")
#: The hub's rule for either half of a repository's id.
HUB_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


class UploadError(RuntimeError):
    """The hub would not take it, or was not reached. The message is one line and says what to do."""


def check_upload_name(repo: str, origin: str, source_card: str | None = None) -> None:
    """Raises ValueError unless weights converted from `origin` may be published as `repo`, "OWNER/NAME" or "NAME".

    EXAONE's licence (1.2 - NC) wants "EXAONE" at the beginning of a derivative's name, in capitals. What is not
    EXAONE, the demo for one, must not carry that mark in any spelling: a reader would take it for LG's.
    """
    owner, slash, name = repo.rpartition("/")
    ends_badly = name.endswith((".git", ".ipynb"))
    if len(repo) > 96 or ends_badly or not HUB_NAME.fullmatch(name) or (slash and not HUB_NAME.fullmatch(owner)):
        raise ValueError(
            f"{repo!r} is no name for a repository: OWNER/NAME or NAME, of letters, digits and single - _ . "
            "inside, at most 96 characters"
        )
    if is_exaone(origin, source_card):
        if not name.startswith("EXAONE"):
            raise ValueError(
                f"EXAONE's licence (1.2 - NC) wants the name of what is made from it to begin with EXAONE: not {name}, "
                f"but for example EXAONE-{name.removeprefix('exaone').lstrip('-_.') or '4.0'}"
            )
    elif name.casefold().startswith("exaone"):
        raise ValueError(
            f"these weights are not EXAONE, and {name} would pass them off as such; choose a name that begins otherwise"
        )


def upload(folder: Path, repo: str, *, private: bool = False, notice: Callable[[str], None]) -> str:
    """Publishes a converted folder as `repo` ("OWNER/NAME", or "NAME" under the user's own) and returns its address.

    `notice` is called once with what will be sent and under which terms, before the first request; what it raises
    stops the upload. Endpoint and token are huggingface_hub's (HF_ENDPOINT, HF_TOKEN, `hf auth login`), and so is
    the progress on a terminal. An own repository of that name gets a new commit, in which weights of other names go.

    Raises FileNotFoundError and ValueError, before anything is sent, for a folder or a name that must not be
    published, and UploadError for what the hub answers. The folder is only read: the same call can be repeated.
    """
    folder = Path(folder).expanduser()
    files = _finished(folder)
    card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    origin = _origin(folder)
    check_upload_name(repo, origin, card)
    exaone = is_exaone(origin, card)
    if exaone and not any(file.startswith("LICENSE") and (folder / file).stat().st_size for file in files):
        raise FileNotFoundError(
            f"{folder} has no LICENSE: EXAONE's licence must be published with the weights; copy it from the original"
        )
    _check_privacy(folder, files)
    size = sum((folder / file).stat().st_size for file in files)
    about = f"{folder.name} goes to {repo}: {len(files)} files, {size / 1e6:,.1f} MB."
    notice(f"{about} {NOTICE}" if exaone else about)
    try:
        return _send(folder, files, repo, private)
    except UploadError:
        raise
    except Exception as error:  # connections fail in many classes, and each version of huggingface_hub in its own
        raise UploadError(f"{_reason(error, repo)}; {folder} stays as it is, and the upload can be repeated") from error


def _finished(folder: Path) -> list[str]:
    """The names of what to send. Raises for a folder that is no finished conversion."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if folder.name.endswith(".partial"):
        raise ValueError(f"{folder} is a conversion under way, or the remains of one; only a finished one is uploaded")
    if missing := [name for name in WRITTEN if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} has no {missing[0]}: it is no finished conversion")
    checkpoint = Checkpoint(folder)  # every shard is there, as long as its header says
    shards = {info.file.relative_to(folder).as_posix() for info in checkpoint.tensors.values()}
    if outside := [name for name in sorted(shards) if not re.fullmatch(r"[\w.-]+\.safetensors", name)]:
        raise ValueError(f"{INDEX_NAME} of {folder} lists {outside[0]}, which is no file name of a shard")
    present = {file.name for file in folder.iterdir() if file.is_file()}
    return sorted(shards | {name for pattern in PUBLISHED for name in fnmatch.filter(present, pattern)})


def _origin(folder: Path) -> str:
    """What the report says of the origin; "" if there is none."""
    report = read_json(folder / "report.json") if (folder / "report.json").is_file() else {}
    conversion = report.get("conversion")
    return str(conversion.get("origin") or "") if isinstance(conversion, dict) else ""


def _check_privacy(folder: Path, files: list[str]) -> None:
    """A path below the user's home names the user."""
    homes = {str(path).rstrip("/") + "/" for path in (Path.home(), Path.home().resolve())} - {"/"}
    spellings = homes | {json.dumps(home)[1:-1] for home in homes}
    for file in set(files) & set(TELLTALE):
        text = (folder / file).read_text(encoding="utf-8", errors="replace")
        if any(home in text for home in spellings):
            raise ValueError(f"{folder / file} tells a path in your home folder; take it out before it is published")


def _send(folder: Path, files: list[str], repo: str, private: bool) -> str:
    from huggingface_hub import HfApi, get_token  # here: its import costs more than a demo reply

    from .. import __version__

    if not get_token():
        raise UploadError("the hub wants to know who you are: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="exaone4_mlx", library_version=__version__)
    # None, not False: an organisation may make its repositories private unless told otherwise.
    page = api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.repo_info(page.repo_id).private:
        raise UploadError(f"{page.repo_id} exists and is public; nothing was sent. Make it private there, or rename")
    api.upload_folder(
        repo_id=page.repo_id,
        folder_path=folder,
        allow_patterns=files,
        delete_patterns=["model*.safetensors"],  # of an earlier upload: mlx-lm would load them too
        commit_message=f"Upload {page.repo_id.rpartition('/')[2]}, converted with exaone4_mlx {__version__}",
    )
    return str(page)


def _reason(error: BaseException, repo: str) -> str:
    """One line: what went wrong and what can be done."""
    chain = list(_causes(error))
    status = next((code for code in map(_status, chain) if code), None)
    if status == 401:
        return "the hub does not know this token: run `hf auth login`, or set HF_TOKEN to one that may write"
    if status == 403:
        return f"this token may not write to {repo}: the name is someone else's, or the token is for reading only"
    if status == 404:
        return f"the hub has no place for {repo}: its owner does not exist, or the token may not see it"
    last = chain[-1] if status is None else error
    told = one_line(getattr(last, "server_message", None) or str(last)) or type(last).__name__
    return f"the upload to {repo} failed: {told[:300]}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)
