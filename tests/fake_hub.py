"""A fake Hugging Face hub on loopback, with the part of its API that an upload uses. It keeps what it receives."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_mina"


@dataclass
class Repo:
    """`commits` are the summaries, oldest first."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class LoopbackServer:
    """Answers requests on loopback, by `handle`, until `close`."""

    def __init__(self) -> None:
        handle = self.handle

        class Handler(BaseHTTPRequestHandler):
            do_GET = do_HEAD = do_POST = do_PUT = lambda request: handle(request)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class FakeHub(LoopbackServer):
    """The user is mina. `answers` maps the beginning of a path to an error status.

    Requests for a path that begins with `break_off` get no answer.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.answers: dict[str, int] = {}
        self.break_off: str | None = None
        super().__init__()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = _body(request)
        path = request.path.partition("?")[0]
        self.requests.append(f"{request.command} {path}")
        if self.break_off and path.startswith(self.break_off):
            return
        status, values = self._route(request, path, body)
        text = json.dumps(values).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    def _route(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> tuple[int, Any]:
        for start, status in self.answers.items():
            if path.startswith(start):
                return status, {"error": "as the test wants it"}
        if path.startswith("/lfs/"):  # the address grants the permission, as with S3
            self.objects[path.removeprefix("/lfs/")] = body
            return 200, {}
        if request.headers["Authorization"] != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._place(item) for item in json.loads(body)["objects"]]}
        _, _, _, owner, name, *rest = path.split("/")
        repo = self.repos.get(f"{owner}/{name}")
        if repo is None:
            return 404, {"error": "Repository not found"}
        if request.command == "POST" and owner != "mina":
            return 403, {"error": f"You don't have the rights to write to {owner}/{name}"}
        if not rest or rest[0] == "revision":
            return 200, {"id": f"{owner}/{name}", "private": repo.private, "sha": "0" * 40, "siblings": []}
        if rest[0] == "tree":
            return 200, [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40} for file, data in repo.files.items()
            ]
        if rest[0] == "preupload":
            return 200, {"files": [self._mode(repo, item) for item in json.loads(body)["files"]]}
        assert rest[0] == "commit", path
        self._commit(repo, [json.loads(line) for line in body.splitlines()])
        return 200, {"commitUrl": f"{self.endpoint}/{owner}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked.get("organization") or "mina"
        repo_id = f"{owner}/{asked['name']}"
        url = {"url": f"{self.endpoint}/{repo_id}"}
        if owner != "mina":
            return 403, {"error": f'You don\'t have the rights to create a model under the namespace "{owner}".'}
        if repo_id in self.repos:
            return 409, {"error": "You already created this model repo", **url}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[repo_id] = Repo(private, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return 200, url

    def _mode(self, repo: Repo, item: dict[str, Any]) -> dict[str, Any]:
        """Weights go to large file storage, which identifies them by their SHA-256."""
        large = item["path"].endswith(".safetensors")
        here = repo.files.get(item["path"])
        oid = None
        if here is not None:
            oid = (
                hashlib.sha256(here).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(here) + here).hexdigest()
            )
        mode = "lfs" if large else "regular"
        return {"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.objects:
            return item
        return item | {"actions": {"upload": {"href": f"{self.endpoint}/lfs/{item['oid']}"}}}

    def _commit(self, repo: Repo, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo.commits.append(value["summary"])
            elif line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                data = self.objects[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"], (
                    "the uploaded bytes do not have the announced hash"
                )
                repo.files[value["path"]] = data
            else:
                assert line["key"] == "deletedFile", line["key"]
                del repo.files[value["path"]]


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers["Transfer-Encoding"] != "chunked":
        return request.rfile.read(int(request.headers["Content-Length"] or 0))
    parts = []
    while size := int(request.rfile.readline(), 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


class FileServer(LoopbackServer):
    """A hub that serves the `files` of every repository. `answer`, if it is set, is the answer to all requests.

    After `stall_after` bytes of a file it sends nothing more until `close`. `ranges` are the requested ones. A search
    finds `listed`, and `searches` are the requested ones.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.ranges, self.searches = files, list[str](), list[str]()
        self.listed: list[dict[str, Any]] = []
        self.answer: tuple[int, str, bytes] | None = None  # status, content type, body
        self.stall_after: int | None = None
        self.stalled, self._closed = threading.Event(), threading.Event()
        super().__init__()

    def close(self) -> None:
        self._closed.set()
        super().close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if self.answer is not None:
            missing = {"X-Error-Code": "RepoNotFound"} if self.answer[0] == 404 else {}
            return self._send(request, *self.answer, missing)
        if path == "/api/models":
            self.searches.append(request.path.partition("?")[2])
            return self._send(request, 200, "application/json", json.dumps(self.listed).encode())
        if path.startswith("/api/models/"):
            info: Any = {"id": "x/y", "sha": "f" * 40, "siblings": [{"rfilename": name} for name in self.files]}
            if "/tree/" in path:
                info = [
                    {"type": "file", "oid": hashlib.sha256(data).hexdigest(), "size": len(data), "path": name}
                    for name, data in self.files.items()
                ]
            return self._send(request, 200, "application/json", json.dumps(info).encode())
        data = self.files.get(path.rsplit("/", 1)[-1])
        if data is None:
            return self._send(request, 404, "text/plain", b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": "f" * 40, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        status, asked = 200, request.headers["Range"]
        if asked:
            self.ranges.append(asked)
            status, start = 206, int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        return self._send(request, status, "application/octet-stream", data, headers)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        kind: str,
        body: bytes,
        headers: dict[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.stall_after is not None and len(body) > self.stall_after:
            request.wfile.write(body[: self.stall_after])
            self.stalled.set()
            self._closed.wait()
        else:
            request.wfile.write(body)
