"""The loopback hub, with as much of the protocol as publishing uses: create, branch, LFS, commit, pull request.

    with WritableHub(root) as hub:
        hub.state.breaks = lambda request: 403 if request.startswith("PUT") else None
        ...
        hub.state.commits                # what each commit changed

A file that came by LFS is known by its SHA-256, others by git's name of them. Refs beside main lie in folders of
their own. With `xet` the client brings content to a store in a folder and no content passes here: commits then
leave what they name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_hub import LoopbackHandler, LoopbackHub, commit_of

REPO = re.compile(
    r"/api/datasets/(?P<repo>[^/]+/[^/]+)/(?P<verb>preupload|commit|branch|xet-write-token)/(?P<rev>.+)"
)
DISCUSSIONS = re.compile(r"/api/datasets/(?P<repo>[^/]+/[^/]+)/discussions")
MERGE = re.compile(r"/api/datasets/(?P<repo>[^/]+/[^/]+)/discussions/(?P<number>\d+)/merge")
BATCH = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class State:
    """What the server knows."""

    breaks: Callable[[str], int | None] = lambda request: None
    """(`METHOD path`) -> the status to fail with; None: answer."""
    commits: list[dict[str, Any]] = field(default_factory=list)
    """Revision, message, and the paths that were added, with what of each, and deleted."""
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)
    """Numbers of pull requests."""
    pull_requests: list[dict[str, Any]] = field(default_factory=list)
    """As the list of discussions has them; a test may close one or give it to another author."""


class WritableHub(LoopbackHub):
    def __init__(self, root: Path) -> None:
        class Handler(_Handler):
            state = State()

        super().__init__(root, Handler)
        self.state = Handler.state


class _Handler(LoopbackHandler):
    state: ClassVar[State]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self._is_broken():
            return
        if path == "/api/whoami-v2":
            self._json({"name": "somebody", "type": "user", "auth": {"type": "access_token"}})
        elif match := DISCUSSIONS.fullmatch(path):
            self._discussions(match["repo"])
        elif (match := REPO.fullmatch(path)) and match["verb"] == "xet-write-token":
            self._json(
                {
                    "casUrl": f"local://{self.root / 'xet'}",
                    "accessToken": "none",
                    "exp": int(time.time()) + 900,
                }
            )
        else:
            super().do_GET()

    def do_PUT(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._is_broken():
            return
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.state.objects[oid] = content
        self.state.puts.append(oid)
        self._json({})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.endswith("paths-info") or "/paths-info/" in path:
            super().do_POST()
            return
        self.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._is_broken():
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            self._json(
                {"errors": [] if content.startswith("---\n") else [{"message": "no head"}], "warnings": []}
            )
        elif match := BATCH.fullmatch(path):
            self._json(
                {"transfer": "basic", "objects": [self._object(one) for one in json.loads(body)["objects"]]}
            )
        elif match := REPO.fullmatch(path):
            self._change(match, body)
        elif match := MERGE.fullmatch(path):
            self._merge(match["repo"], int(match["number"]))
        else:
            self._missing("EntryNotFound")

    def _discussions(self, repo: str) -> None:
        if not self._at(repo, "main").is_dir():
            self._missing("RepoNotFound")
            return
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        assert asked["type"] == "pull_request"
        found = [
            one
            for one in self.state.pull_requests
            if (one["status"], one["author"]["name"]) == (asked["status"], asked["author"])
        ]
        self._json({"discussions": found, "count": len(found), "start": 0})

    def _merge(self, repo: str, number: int) -> None:
        """Main becomes what the pull request is: a test changes no main in between."""
        (one,) = (one for one in self.state.pull_requests if one["num"] == number)
        assert one["status"] == "open"
        one["status"] = "merged"
        main = self._at(repo, "main")
        shutil.rmtree(main)
        shutil.copytree(self._at(repo, f"refs/pr/{number}"), main)
        self.state.merged.append(number)
        self._json({})

    def _is_broken(self) -> bool:
        status = self.state.breaks(f"{self.command} {self.path}")
        if status is not None:
            self.send_response(status)
            self._body(b'{"error": "broken on purpose"}', "application/json")
        return status is not None

    def _create(self, asked: dict[str, Any]) -> None:
        folder = self.root / "datasets" / asked["organization"] / asked["name"]
        url = f"http://{self.headers['Host']}/datasets/{asked['organization']}/{asked['name']}"
        self.send_response(409 if folder.is_dir() else 200)
        folder.mkdir(parents=True, exist_ok=True)
        self._body(json.dumps({"url": url}).encode(), "application/json")

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.state.objects:
            return asked
        return asked | {"actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{asked['oid']}"}}}

    def _change(self, match: re.Match[str], body: bytes) -> None:
        folder = self._at(match["repo"], match["rev"])
        if match["verb"] == "branch":
            main = self._at(match["repo"], "main")
            self.send_response(409 if folder.is_dir() else 200)
            if not folder.is_dir():
                shutil.copytree(main, folder)
            self._body(b"{}", "application/json")
        elif not folder.is_dir():
            self._missing("RepoNotFound" if match["rev"] == "main" else "RevisionNotFound")
        elif match["verb"] == "preupload":
            files = [self._mode(folder, one["path"]) for one in json.loads(body)["files"]]
            self._json({"files": files})
        else:
            self._commit(match, folder, [json.loads(line) for line in body.splitlines()])

    def _at(self, repo: str, rev: str) -> Path:
        """The folder of a branch, of a pull request, or of the one whose commit it is."""
        main = self.root / "datasets" / repo
        other = self.root / "refs" / rev.replace("/", "%") / repo
        if rev == "main" or not re.fullmatch(r"[0-9a-f]{40}", rev):
            return main if rev == "main" else other
        refs = [main, *(path / repo for path in (self.root / "refs").glob("*"))]
        return next((path for path in refs if path.is_dir() and commit_of(path) == rev), main)

    def _folder(self, match: re.Match[str]) -> Path:
        if (match["kind"] or "models") != "datasets":
            return super()._folder(match)
        return self._at(match["repo"], unquote(match["rev"] or "main"))

    def _mode(self, folder: Path, path: str) -> dict[str, Any]:
        there = folder / path
        mode = "lfs" if path.endswith(".parquet") else "regular"
        oid = _oid(there, mode) if there.is_file() else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, match: re.Match[str], folder: Path, lines: list[dict[str, Any]]) -> None:
        url = f"http://{self.headers['Host']}/datasets/{match['repo']}"
        answer: dict[str, Any] = {"pullRequestUrl": None}
        rev = match["rev"]
        if "create_pr" in parse_qs(urlsplit(self.path).query):
            rev, before = f"refs/pr/{1 + len(list((self.root / 'refs').glob('refs%pr%*')))}", folder
            folder = self._at(match["repo"], rev)
            shutil.copytree(before, folder)
            number = rev.rpartition("/")[2]
            answer["pullRequestUrl"] = (
                f"http://{self.headers['Host']}/datasets/{match['repo']}/discussions/{number}"
            )
        added: dict[str, str] = {}
        deleted: list[str] = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = _write(folder / value["path"], base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                content = self.state.objects.get(value["oid"], b"")
                _write(folder / value["path"], content)
                added[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
                deleted.append(value["path"])
        summary = lines[0]["value"]["summary"]
        if answer["pullRequestUrl"]:
            self.state.pull_requests.append(
                {
                    "num": int(rev.rpartition("/")[2]), "title": summary, "status": "open", "isPullRequest": True,
                    "author": {"name": "somebody"}, "createdAt": "2026-01-01T00:00:00.000Z",
                    "repo": {"name": match["repo"], "type": "dataset"},
                }
            )  # fmt: skip
        self.state.commits.append({"revision": rev, "message": summary, "added": added, "deleted": deleted})
        made = commit_of(folder)
        self._json(answer | {"commitOid": made, "commitUrl": f"{url}/commit/{made}"})

    def _entries(self, folder: Path, place: Path, *, recursive: bool) -> list[dict[str, Any]]:
        entries = super()._entries(folder, place, recursive=recursive)
        for entry in entries:
            path = folder / entry["path"]
            if path.is_file():
                entry["oid"] = _oid(path, "regular")
                if path.suffix == ".parquet":
                    entry["lfs"] = {"oid": _oid(path, "lfs"), "size": entry["size"], "pointerSize": 130}
        return entries


def _oid(path: Path, mode: str) -> str:
    content = path.read_bytes()
    if mode == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return _oid(path, "regular")
