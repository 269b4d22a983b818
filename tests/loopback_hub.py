"""A small Hugging Face hub on 127.0.0.1: as much of its protocol as downloads and streamed datasets use.

    with LoopbackHub(root) as hub:     # root/models/org/name/*, root/datasets/org/name/*
        ...                            # HF_ENDPOINT=hub.url

One commit a repository, named by its content. Speaks to the real client libraries, so that what they keep in
their caches, and find there again without a network, is tested and not assumed.
"""

from __future__ import annotations

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
        self.root = root
        super().__init__(Handler)


def commit_of(folder: Path) -> str:
    found = hashlib.sha1()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


class LoopbackHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: ClassVar[Path]
    requests: ClassVar[list[str]]

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
                "oid": hashlib.sha1(path.read_bytes() if path.is_file() else b"").hexdigest(),
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
        content = path.read_bytes()
        start, end = 0, len(content)
        if ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(ranged[1]), min(int(ranged[2] or end - 1) + 1, end)
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit_of(folder))
        self.send_header("Accept-Ranges", "bytes")
        self._body(content[start:end], "application/octet-stream")

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self._body(b"{}", "application/json")

    def _json(self, content: Any) -> None:
        self.send_response(200)
        self._body(json.dumps(content).encode(), "application/json")

    def _body(self, content: bytes, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
