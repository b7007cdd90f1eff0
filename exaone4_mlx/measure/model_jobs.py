"""Downloads and conversions of models, which survive the program that starts them.

Notes:
- Each job is a process (see `model_process`). A pause ends the process, and what is on the disk stays. One job of each
  kind runs at a time, and the others wait.
- The jobs and the accepted licences are in FOLDER/jobs.json. What ran when the program ended, or was killed, runs
  again after its next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.folders import atomic_file
from ..files.resumable import discard_incomplete
from .library import discard_conversion

DOWNLOAD, CONVERT = "download", "convert"
WAITING, RUNNING, PAUSED, FAILED = "waiting", "running", "paused", "failed"
END_SECONDS = 5.0  # the longest wait for the end of a process


@dataclass
class ModelJob:
    """A download of the repository `name`, or a conversion to the folder `name`; `arguments` are those of the process.

    `error` is why it failed, with the `cause` and `detail` of a DownloadError.
    """

    kind: str
    name: str
    arguments: list[str]
    state: str = WAITING
    done: int = 0
    total: int = 0
    in_bytes: bool = True  # or in steps
    error: str = ""
    cause: str = ""
    detail: str = ""
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        return f"{self.kind} {self.name}"


class ModelJobs:
    """The downloads and conversions of one program. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where converted models are. Jobs that ran when the program ended begin at once."""
        self.folder = folder
        self.ended = 0  # jobs that are done
        self._file = folder / "jobs.json"
        self._lock = threading.RLock()
        self._jobs: list[ModelJob] = []
        self._accepted: list[str] = []
        self._closed = False
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # there is none, or not one of ours
            content = json.loads(self._file.read_text(encoding="utf-8"))
            self._accepted = [str(repo) for repo in content["accepted"]]
            self._jobs = [ModelJob(one["kind"], one["name"], one["arguments"], one["state"]) for one in content["jobs"]]
            self._jobs = [job for job in self._jobs if job.kind in (DOWNLOAD, CONVERT)]
        for job in self._jobs:
            job.state = PAUSED if job.state == FAILED else job.state
        self._begin_next()

    @property
    def jobs(self) -> list[ModelJob]:
        with self._lock:
            return list(self._jobs)

    def accepted(self, repo: str) -> bool:
        """Whether the licence of a repository was accepted."""
        return repo in self._accepted

    def accept(self, repo: str) -> None:
        with self._lock:
            if repo not in self._accepted:
                self._accepted.append(repo)
                self._write()

    def download(self, repo: str) -> None:
        """Downloads a repository to the cache of the hub. Raises PermissionError without an accepted licence."""
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
            raise ValueError(f"{repo!r} is not the name of a repository, such as LGAI-EXAONE/EXAONE-4.0-1.2B")
        if not self.accepted(repo):
            raise PermissionError(f"the licence of {repo} was not accepted")
        self._add(ModelJob(DOWNLOAD, repo, [repo]))

    def convert(self, source: str, name: str, bits: int) -> None:
        """Converts a model to the folder `name`. Raises FileExistsError if there is one."""
        target = self.folder / name
        if target.exists():
            raise FileExistsError(f"{target} already exists")
        self._add(ModelJob(CONVERT, name, [source, str(target), str(bits)]))

    def uses(self, *paths: str) -> bool:
        """Whether a job reads or writes one of these models."""
        return any(path in job.arguments for job in self.jobs for path in paths)

    def pause(self, id: str) -> None:
        """Ends the process of a job. What is on the disk stays."""
        with self._lock:
            job = self._job(id)
            job.state = PAUSED
            self._end(job)
            self._begin_next()

    def resume(self, id: str) -> None:
        with self._lock:
            job = self._job(id)
            if job.state in (PAUSED, FAILED):
                job.state, job.error = WAITING, ""
                self._begin_next()

    def discard(self, id: str) -> int:
        """Ends a job and removes what it has on the disk. Returns the bytes freed."""
        with self._lock:
            job = self._job(id)
            job.state = PAUSED
            self._end(job)
            self._jobs.remove(job)
            self._begin_next()
        if job.kind == DOWNLOAD:
            return discard_incomplete(job.name)
        return discard_conversion(self.folder / job.name)

    def close(self) -> None:
        """The program ends: ends all processes. Their jobs begin again with the next `ModelJobs` of the folder."""
        with self._lock:
            self._closed = True
            for job in self._jobs:
                self._end(job)

    # --- inside ---------------------------------------------------------------

    def _job(self, id: str) -> ModelJob:
        for job in self._jobs:
            if job.id == id:
                return job
        raise ValueError(f"there is no job {id}")

    def _add(self, job: ModelJob) -> None:
        with self._lock:
            if any(other.id == job.id for other in self._jobs):
                raise ValueError(f"{job.name} is being made already")
            self._jobs.append(job)
            self._begin_next()

    def _begin_next(self) -> None:
        """Begins the first waiting job of each kind of which none runs, and writes the list."""
        with self._lock:
            for job in self._jobs:
                running = [one for one in self._jobs if one.kind == job.kind and one.process is not None]
                if job.state in (WAITING, RUNNING) and not running and not self._closed:
                    self._begin(job)
            self._write()

    def _begin(self, job: ModelJob) -> None:
        job.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.model_process", job.kind, *job.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # Ctrl-C in the terminal is for the program
            env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        job.state = RUNNING
        threading.Thread(target=self._follow, args=(job, job.process), name="job", daemon=True).start()

    def _follow(self, job: ModelJob, process: subprocess.Popen[str]) -> None:
        """Reads what the process of a job reports, until it ends."""
        assert process.stdout is not None
        ended = ""
        with process:
            for line in process.stdout:
                what, *values = json.loads(line)
                if what == "progress":
                    job.done, job.total, job.in_bytes = values
                elif what == "error":
                    ended, (job.error, job.cause, job.detail) = FAILED, values
                else:
                    ended = what
        code = process.returncode
        with self._lock:
            if job.process is not process:  # it was paused
                return
            job.process = None
            if self._closed:
                return
            if ended == "done":
                self._jobs.remove(job)
                self.ended += 1
            else:
                job.state = FAILED
                job.error = job.error if ended else f"the process ended with exit code {code}"
            self._begin_next()

    def _end(self, job: ModelJob) -> None:
        process, job.process = job.process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)

    def _write(self) -> None:
        """Writes the list. A disk without room is no reason to stop a job."""
        jobs: list[dict[str, Any]] = [
            {"kind": job.kind, "name": job.name, "arguments": job.arguments, "state": job.state} for job in self._jobs
        ]
        if not jobs and not self._accepted and not self._file.exists():
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._file) as stream:
                stream.write(json.dumps({"accepted": self._accepted, "jobs": jobs}, indent=1).encode())
