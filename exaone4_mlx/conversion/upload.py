"""A converted folder -> a repository on the Hugging Face hub.

Notes:
- All checks come before the first request: the name (EXAONE's licence has a rule for it), an unfinished folder, a
  missing licence, the user's paths in files that would be published.
- Only files that a conversion writes are sent, by name.
- `upload_folder` makes one commit, so weights are never public without card and licence. A second attempt sends only
  missing files. (`upload_large_folder` is gone in huggingface_hub 2, and would make several commits.)
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from pathlib import Path

from ..files.folders import check_files, read_json
from ..files.safetensors import INDEX_NAME, Checkpoint
from .licence import EXAONE_NOTICE, is_exaone, one_line
from .plot import PLOT_NAME

#: Shown before weights under EXAONE's licence are sent.
NOTICE = f"{EXAONE_NOTICE} By publishing these weights you distribute a derivative of EXAONE under these terms."

WRITTEN = ("config.json", INDEX_NAME, "README.md")
#: Files that a conversion copies from the source.
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
#: Files that are published with the weights, if they exist.
PUBLISHED = (*WRITTEN, "report.json", PLOT_NAME, *CARRIED_FILES)
#: Files that could contain a path of the user's machine.
PATH_CHECKED = ("config.json", "README.md", "report.json", PLOT_NAME, "tokenizer_config.json", "generation_config.json")
#: The hub's rule for the owner and the name of a repository.
HUB_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


class UploadError(RuntimeError):
    """The hub refused the upload, or was not reached. The message is one line and says what to do."""


def check_upload_name(repo: str, origin: str, source_card: str | None = None) -> None:
    """Raises ValueError unless weights converted from `origin` may be published as `repo`, "OWNER/NAME" or "NAME".

    By EXAONE's licence (1.2 - NC) the name of a derivative begins with "EXAONE", in capitals. Other weights, such as
    the demo, must not have a name that begins with it in any spelling: a reader would take them for LG's.
    """
    owner, slash, name = repo.rpartition("/")
    ends_badly = name.endswith((".git", ".ipynb"))
    if len(repo) > 96 or ends_badly or not HUB_NAME.fullmatch(name) or (slash and not HUB_NAME.fullmatch(owner)):
        raise ValueError(
            f"{repo!r} is not a valid repository name: use OWNER/NAME or NAME, with letters, digits and single - _ . "
            "inside, at most 96 characters"
        )
    if is_exaone(origin, source_card):
        if not name.startswith("EXAONE"):
            raise ValueError(
                f"by EXAONE's licence (1.2 - NC) the name of a derivative must begin with EXAONE: not {name}, "
                f"but for example EXAONE-{name.removeprefix('exaone').lstrip('-_.') or '4.0'}"
            )
    elif name.casefold().startswith("exaone"):
        raise ValueError(
            f"these weights are not EXAONE, but the name {name} says so; choose a name with another beginning"
        )


def upload(folder: Path, repo: str, *, private: bool = False, notice: Callable[[str], None]) -> str:
    """Publishes a converted folder as `repo` ("OWNER/NAME", or "NAME" under the user's own) and returns its address.

    `notice(text)` is called once before the first request, with the files and the terms; an exception in it stops the
    upload. Endpoint, token and progress bars are huggingface_hub's (HF_ENDPOINT, HF_TOKEN, `hf auth login`). An
    existing repository of the user gets a new commit, which removes weights of other names.

    Raises FileNotFoundError and ValueError, before anything is sent, for a folder or a name that must not be
    published, and UploadError for an error of the hub. The folder is not changed: the call can be repeated.
    """
    folder = Path(folder).expanduser()
    files = _finished(folder)
    card = (folder / "README.md").read_text(encoding="utf-8-sig", errors="replace")
    report = read_json(folder / "report.json") if (folder / "report.json").is_file() else {}
    conversion = report.get("conversion")
    origin = str(conversion.get("origin") or "") if isinstance(conversion, dict) else ""
    check_upload_name(repo, origin, card)
    exaone = is_exaone(origin, card)
    if exaone and not any(file.startswith("LICENSE") and (folder / file).stat().st_size for file in files):
        raise FileNotFoundError(
            f"{folder} has no LICENSE: EXAONE's licence must be published with the weights; copy it from the original"
        )
    _check_privacy(folder, files)
    size = sum((folder / file).stat().st_size for file in files)
    about = f"{folder.name} is uploaded to {repo}: {len(files)} files, {size / 1e6:,.1f} MB."
    notice(f"{about} {NOTICE}" if exaone else about)
    try:
        return _send(folder, files, repo, private)
    except UploadError:
        raise
    except Exception as error:  # connection errors have many classes, which differ by version of huggingface_hub
        raise UploadError(f"{_reason(error, repo)}; {folder} is unchanged, and the upload can be repeated") from error


def _finished(folder: Path) -> list[str]:
    """The names of the files to send. Raises for a folder that is not a finished conversion."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if folder.name.endswith(".partial"):
        raise ValueError(f"{folder} is an unfinished conversion; only a finished one can be uploaded")
    if missing := [name for name in WRITTEN if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} has no {missing[0]}: it is not a finished conversion")
    check_files(folder)
    checkpoint = Checkpoint(folder)  # checks that every shard exists with the size that its header gives
    shards = {info.file.name for info in checkpoint.tensors.values()}
    present = {file.name for file in folder.iterdir() if file.is_file()}
    return sorted(shards | {name for pattern in PUBLISHED for name in fnmatch.filter(present, pattern)})


def _check_privacy(folder: Path, files: list[str]) -> None:
    """Raises ValueError for a file with a path below the user's home: it names the user."""
    homes = {str(path).rstrip("/") + "/" for path in (Path.home(), Path.home().resolve())} - {"/"}
    spellings = homes | {json.dumps(home)[1:-1] for home in homes}
    for file in set(files) & set(PATH_CHECKED):
        text = (folder / file).read_text(encoding="utf-8-sig", errors="replace")
        if any(home in text for home in spellings):
            raise ValueError(f"{folder / file} contains a path of your home folder; remove it before you publish")


def _send(folder: Path, files: list[str], repo: str, private: bool) -> str:
    from huggingface_hub import HfApi, get_token  # imported here, because it takes longer than a reply of the demo

    from .. import __version__

    if not get_token():
        raise UploadError("the hub needs a token: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="exaone4_mlx", library_version=__version__)
    # None, not False: an organisation may make its repositories private by default.
    page = api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.repo_info(page.repo_id).private:
        raise UploadError(f"{page.repo_id} exists and is public; nothing was sent. Use another name")
    api.upload_folder(
        repo_id=page.repo_id,
        folder_path=folder,
        allow_patterns=files,
        delete_patterns=["model*.safetensors"],  # of an earlier upload: mlx-lm would load them too
        commit_message=f"Upload {page.repo_id.rpartition('/')[2]}, converted with exaone4_mlx {__version__}",
    )
    return str(page)


def _reason(error: BaseException, repo: str) -> str:
    """One line: the error, and what to do."""
    chain = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    codes = (getattr(getattr(link, "response", None), "status_code", None) for link in chain)
    status = next(filter(None, codes), None)
    if status == 401:
        return "the hub does not accept this token: run `hf auth login`, or set HF_TOKEN to a token with write access"
    if status == 403:
        return f"this token has no write access to {repo}: it belongs to someone else, or the token is read-only"
    if status == 404:
        return f"the hub cannot find {repo}: its owner does not exist, or the token has no access"
    last = chain[-1] if status is None else error
    text = one_line(getattr(last, "server_message", None) or str(last)) or type(last).__name__
    return f"the upload to {repo} failed: {text[:300]}"
