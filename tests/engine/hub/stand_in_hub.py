"""A local HTTP server that answers like the Hugging Face hub, as far as downloads need it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

COMMIT = "c0ffee" + "0" * 34
REPO = "somebody/tiny"


class Hub:
    """The server's files, simulated faults and recorded requests.

    Attributes:
        files: Name to content of ``REPO``.
        others: The same of further repos, by id.
        downloads: Downloads of repos that a search finds, by id.
        searches: The parameters of each search.
        gated, missing, broken: Answer with that error instead.
        damaged: Files served with wrong content.
        cut_after: Break the connection after so many bytes of a weight file; each entry is used once.
        hold: While not set, weight files stop after their first half; ``holding`` is set by then.
        resumes: Whether range requests are honoured.
        answer: Called with the path and the Authorization header; its status, headers and content replace the
            usual answer.
        change_listing: Changes the listing before it is sent.
        padding: Bytes sent after the content of a file.
        file_headers: Additional headers of files.
        authorizations: Path and Authorization header of each request.
    """

    def __init__(self, folder: Path) -> None:
        self.files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.others: dict[str, dict[str, bytes]] = {}
        self.downloads: dict[str, int] = {REPO: 1}
        self.searches: list[dict[str, str]] = []
        self.gated = False
        self.missing = False
        self.broken = False
        self.damaged: set[str] = set()
        self.cut_after: list[int] = []
        self.hold = threading.Event()
        self.hold.set()
        self.holding = threading.Event()
        self.resumes = True
        self.answer: Callable[[str, str | None], tuple[int, dict[str, str], bytes] | None] = lambda *_: None
        self.change_listing: Callable[[dict[str, Any]], None] = lambda _: None
        self.padding: dict[str, bytes] = {}
        self.file_headers: dict[str, str] = {}
        self.authorizations: list[tuple[str, str | None]] = []
        self.requests: list[tuple[str, str, str | None]] = []
        self.sent = 0
        self.url = ""

    def fetched(self) -> set[str]:
        """Names of the requested files."""
        return {path.rpartition("/")[2] for method, path, _ in self.requests if "/resolve/" in path}

    def is_large(self, name: str) -> bool:
        return name.endswith(".safetensors")

    def etag(self, name: str, repo: str = REPO) -> str:
        kind = hashlib.sha256 if self.is_large(name) else hashlib.sha1
        return kind(self.files_of(repo)[name]).hexdigest()

    def files_of(self, repo: str) -> dict[str, bytes]:
        return self.files if repo == REPO else self.others[repo]

    def repo_of(self, path: str) -> str | None:
        """The repo that a path is about."""
        parts = path.split("/")
        named = ("/".join(pair) for pair in pairwise(parts))
        return next((repo for repo in named if repo == REPO or repo in self.others), None)

    def search(self, query: dict[str, str]) -> list[dict[str, Any]]:
        """The answer to a search, most downloaded first, as the hub gives it."""
        self.searches.append(query)
        found = [
            {"_id": str(number), "id": repo, "modelId": repo, "downloads": count, "likes": 0, "tags": ["mlx"]}
            for number, (repo, count) in enumerate(self.downloads.items())
            if query.get("search", "").lower() in repo.lower()
            and query.get("author", repo.partition("/")[0]) == repo.partition("/")[0]
        ]
        found.sort(key=lambda row: -row["downloads"])
        return found[: int(query.get("limit", len(found)))]

    def listing(self, repo: str = REPO) -> dict[str, Any]:
        siblings = []
        for name, content in self.files_of(repo).items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": self.etag(name, repo)}
            if self.is_large(name):
                entry["lfs"] = {"sha256": self.etag(name, repo), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        table = {
            "id": repo,
            "modelId": repo,
            "sha": COMMIT,
            "private": False,
            "tags": ["license:apache-2.0"],
            "siblings": siblings,
        }
        self.change_listing(table)
        return table


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = urlsplit(self.path).path
            repo = hub.repo_of(path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            hub.authorizations.append((path, self.headers.get("Authorization")))
            if (answer := hub.answer(path, self.headers.get("Authorization"))) is not None:
                self.plain(*answer)
            elif hub.broken:
                self.plain(503, {})
            elif path == "/api/models":
                found = hub.search(dict(parse_qsl(urlsplit(self.path).query)))
                self.plain(200, {"Content-Type": "application/json"}, json.dumps(found).encode())
            elif hub.missing or repo is None:
                self.plain(404, {"X-Error-Code": "RepoNotFound"})
            elif hub.gated and "/resolve/" in path:
                self.plain(403, {"X-Error-Code": "GatedRepo"})
            elif path.startswith("/api/models/"):
                self.plain(200, {"Content-Type": "application/json"}, json.dumps(hub.listing(repo)).encode())
            else:
                self.file(repo, path.partition("/resolve/")[2].partition("/")[2], body)

        def plain(self, status: int, headers: dict[str, str], content: bytes = b"{}") -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def file(self, repo: str, name: str, body: bool) -> None:
            files = hub.files_of(repo)
            if name not in files:
                self.plain(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            content = files[name]
            if name in hub.damaged:
                content = bytes(len(content))
            start, given = 0, self.headers.get("Range")
            if given and hub.resumes:
                start = int(given.removeprefix("bytes=").partition("-")[0])
            rest = content[start:] + hub.padding.get(name, b"")
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hub.etag(name, repo)}"',
                "Content-Length": str(len(rest)),
                "Accept-Ranges": "bytes",
            } | hub.file_headers
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.pour(rest, large=hub.is_large(name))

        def pour(self, content: bytes, large: bool) -> None:
            if large and hub.cut_after:
                content = content[: hub.cut_after.pop(0)]
                self.close_connection = True
            half = len(content) // 2
            try:
                self.wfile.write(content[:half])
                self.wfile.flush()
                if large:
                    hub.sent += half
                    hub.holding.set()
                    hub.hold.wait(60)
                self.wfile.write(content[half:])
                hub.sent += len(content) - half if large else 0
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


@contextmanager
def serving(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the model in ``folder`` as ``REPO``; huggingface_hub downloads from there into ``cache``."""
    from huggingface_hub import constants

    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
