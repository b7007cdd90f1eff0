"""Why a download fails, and what to do."""

from __future__ import annotations

import json
import os

#: The causes of a DownloadError, for a caller that has texts of its own.
CAUSES = ("token", "login", "gated", "revision", "missing", "offline", "stranger", "network", "disk")


class DownloadError(FileNotFoundError):
    """A repository that is not in the cache and cannot be downloaded.

    `cause` is one of CAUSES, and `detail` a name or a text of it.
    """

    def __init__(self, message: str, cause: str = "network", detail: str = "") -> None:
        super().__init__(message)
        self.cause, self.detail = cause, detail


def download_error(repo: str, error: Exception) -> DownloadError:
    if isinstance(error, DownloadError):
        return error
    reason, cause, detail = reason_of(error, None)
    return DownloadError(f"{repo} cannot be downloaded: {reason}", cause, detail)


def reason_of(error: BaseException, revision: str | None) -> tuple[str, str, str]:
    """Why a download fails and what to do, its cause, and a name or text of it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 and get_token() is not None:
        variable = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
        held = (
            f"in {variable}: unset it, or set a valid one" if variable else "that `hf auth login` stored: log in again"
        )
        return f"the hub refuses the token {held}", "token" if variable else "login", variable or ""
    if isinstance(error, GatedRepoError):
        return "it needs a login: accept its terms on the hub and set HF_TOKEN", "gated", ""
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}", "revision", f"{revision}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no model of this name on the hub, or it is private and needs HF_TOKEN", "missing", ""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set", "offline", ""
    if isinstance(error, (json.JSONDecodeError, FileMetadataError)):
        return "the answer is not the hub's: the network may show a login page", "stranger", ""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    scheme = constants.ENDPOINT.partition(":")[0]
    proxies = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    proxy = next((name for name in proxies if os.environ.get(name)), None)
    reason = reason if status or proxy is None else f"{reason} (through the proxy in {proxy})"
    return reason, "network", reason
