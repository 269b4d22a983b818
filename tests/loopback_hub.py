"""A small Hugging Face hub on 127.0.0.1: as much of its protocol as downloads and streamed datasets use.

    with LoopbackHub(root) as hub:     # root/models/org/name/*, root/datasets/org/name/*
        ...                            # HF_ENDPOINT=hub.url

One commit a repository, named by its content. Speaks to the real client libraries, so that what they keep in
their caches, and find there again without a network, is tested and not assumed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Loopback

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>revision|tree|paths-info)/(?P<rev>refs/pr/\d+|[^/]+))?"
    r"(?:/(?P<path>.+))?"
)
RESOLVE = re.compile(
    r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>refs/pr/\d+|[^/]+)/(?P<path>.+)"
)


class LoopbackHub(Loopback):
    def __init__(self, root: Path, answers: type[LoopbackHandler] | None = None) -> None:
        class Handler(answers or LoopbackHandler):
            pass

        Handler.root = root
        self.requests = Handler.requests = []
        self._served = Handler.served = []
        self.root = root
        super().__init__(Handler)

    @property
    def n_bytes(self) -> int:
        """Of all bodies that it has sent, those of lists included."""
        return sum(self._served)


def commit_of(folder: Path) -> str:
    found = hashlib.sha1()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.name.encode() + _sha1_of(path).encode())
    return found.hexdigest()


def _sha1_of(path: Path) -> str:
    size = path.stat().st_size
    if size < 2**24:
        return hashlib.sha1(path.read_bytes()).hexdigest()
    return _sha1_of_large(path, size, path.stat().st_mtime_ns)


@functools.cache
def _sha1_of_large(path: Path, _size: int, _changed: int) -> str:
    """Once a file, which is asked about several times."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


class LoopbackHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each body waits 40 ms for its head to be acknowledged
    root: ClassVar[Path]
    requests: ClassVar[list[str]]
    served: ClassVar[list[int]]
    gives_ranges = True

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if match := API.fullmatch(path):
            self._api(match)
        elif match := RESOLVE.fullmatch(path):
            self._file(match)
        else:
            self._missing("EntryNotFound")

    def do_POST(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        match = API.fullmatch(unquote(urlsplit(self.path).path))
        if match is None or match["verb"] != "paths-info":
            self._missing("EntryNotFound")
            return
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        folder = self._folder(match)
        entries = self._entries(folder, folder, recursive=True)
        self._json([entry for entry in entries if entry["path"] in paths])

    def _folder(self, match: re.Match[str]) -> Path:
        return self.root / (match["kind"] or "models") / match["repo"]

    def _api(self, match: re.Match[str]) -> None:
        folder = self._folder(match)
        if not folder.is_dir():
            main_is_there = (self.root / match["kind"] / match["repo"]).is_dir()
            self._missing("RevisionNotFound" if main_is_there else "RepoNotFound")
        elif match["verb"] == "tree":
            place = folder / (match["path"] or "")
            if not place.is_dir():
                self._missing("EntryNotFound")
                return
            recursive = "recursive=true" in self.path.lower()
            self._json(self._entries(folder, place, recursive=recursive))
        else:
            files = [entry["path"] for entry in self._entries(folder, folder, recursive=True)]
            self._json(
                {
                    "id": match["repo"], "sha": commit_of(folder), "private": False, "disabled": False,
                    "gated": False, "downloads": 0, "likes": 0, "tags": [],
                    "lastModified": "2024-01-01T00:00:00.000Z",
                    "siblings": [{"rfilename": file} for file in files],
                }
            )  # fmt: skip

    def _entries(self, folder: Path, place: Path, *, recursive: bool) -> list[dict[str, Any]]:
        found = sorted(place.rglob("*") if recursive else place.iterdir())
        return [
            {
                "type": "file" if path.is_file() else "directory",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size if path.is_file() else 0,
                "oid": _sha1_of(path) if path.is_file() else hashlib.sha1(b"").hexdigest(),
            }
            for path in found
            if path.is_file() or not recursive
        ]

    def _file(self, match: re.Match[str]) -> None:
        folder = self._folder(match)
        path = folder / match["path"]
        if not path.is_file():
            self._missing("EntryNotFound" if folder.is_dir() else "RepoNotFound")
            return
        size = path.stat().st_size
        start, end = 0, size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        ranged = asked if self.gives_ranges else None
        if ranged:
            start, end = int(ranged[1]), min(int(ranged[2] or end - 1) + 1, end)
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("ETag", f'"{_sha1_of(path)}"')
        self.send_header("X-Repo-Commit", commit_of(folder))
        self.send_header("Accept-Ranges", "bytes" if self.gives_ranges else "none")
        self._head("application/octet-stream", end - start)
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            file.seek(start)
            while start < end:
                piece = file.read(min(2**20, end - start))
                self.wfile.write(piece)
                self.served.append(len(piece))
                start += len(piece)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self._body(b"{}", "application/json")

    def _json(self, content: Any) -> None:
        self.send_response(200)
        self._body(json.dumps(content).encode(), "application/json")

    def _body(self, content: bytes, kind: str) -> None:
        self._head(kind, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)
            self.served.append(len(content))

    def _head(self, kind: str, n_bytes: int) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(n_bytes))
        self.end_headers()
