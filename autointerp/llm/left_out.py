"""What a server turns out to refuse: learned from its answers, not sent from then on, kept in the run.

Kept, because the check before a run and each `resume` are other processes: what one has learned, and paid a
request for, the next one knows from its first request on, and says of its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from autointerp.files import write_atomically
from autointerp.llm.dialects import THOUGHTS, Dialect
from autointerp.llm.retries import Passing
from autointerp.llm.server_errors import UNNAMED, RefusedSetting
from autointerp.types import Json

FILE: Final = "usage/left_out.json"
"""In a run's folder. Whoever deletes it has the settings tried again."""
LIMIT: Final = {"max_tokens", "max_completion_tokens"}
"""Both names of one field."""
_FIRST_TO_GO: Final = ("logprobs", "response_format", "structured_outputs", "seed", *THOUGHTS)
"""What is left out where a server takes not all of it and doesn't say what: rarest first, and last what changes the
answers most."""
_SETTINGS: Final = (*_FIRST_TO_GO, "top_logprobs", *LIMIT, "system")


def left_out(folder: Path) -> dict[str, list[str]]:
    """By LLM, the settings that were left out in the run of this folder, in the order they were refused."""
    path = folder / FILE
    return orjson.loads(path.read_bytes()) if path.is_file() else {}


def unite(folders: Sequence[Path], out: Path) -> None:
    """What was left out in any of these runs is left out in that of `out`, but for both names of a limit: no request
    goes without one, and the first refusal says which. Raises DiskFull."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for llm, names in left_out(folder).items():
            known = found.setdefault(llm, [])
            known += [name for name in names if name not in known]
    found = {llm: kept for llm, names in found.items() if (kept := _without_both_limits(names))}
    if found != left_out(out):
        write_atomically(out / FILE, orjson.dumps(found))


def _without_both_limits(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in LIMIT or not set(names) >= LIMIT]


def refused(llm: str, names: Sequence[str]) -> str:
    """For a person."""
    return f"{llm} refuses {', '.join(names)}: its requests go without, and scores say so where it matters."


class Learned:
    """How a server is asked, by all that it refused so far."""

    def __init__(self, dialect: Dialect, folder: Path | None, llm: str) -> None:
        """`dialect`: as it is asked where it refuses nothing. `folder`: the run's; None: nothing is kept."""
        self.dialect = dialect
        self._plain = dialect
        self._folder, self._llm = folder, llm
        self._refused: dict[str, str] = {}
        """By name, the setting as it was when it was refused; empty where another process learned it."""
        self._taken: set[str] = set()
        """Settings of requests that were answered."""
        self._taken_after_all: set[str] = set()
        """Names of what was left out, and is no more."""
        if folder is not None:
            self._refused = dict.fromkeys(_without_both_limits(left_out(folder).get(llm, ())), "")
            self._apply()

    @property
    def names(self) -> tuple[str, ...]:
        """What is left out, in the order it was refused."""
        return tuple(self._refused)

    def check(self, refused: RefusedSetting, body: Json) -> None:
        """Raises Passing where the server has taken that setting before: then this request met a fault, or, behind
        a gateway, another server."""
        name = self._name(refused, body)
        if _setting(name, body) in self._taken:
            raise Passing(f"it took '{name}' before and now refuses it: {refused.stopped}") from None

    def leave_out(self, refused: RefusedSetting, body: Json) -> None:
        """From now on. Raises LLMStopped where nothing can be left out, that has been tried, or `extra_body` sends it
        all the same."""
        name = self._name(refused, body)
        outdated = {one for one in self._refused.keys() & fields_of(body) if not self.dialect.sends(one)}
        if outdated if refused.name == UNNAMED else name in outdated:
            return  # learned since `body` was written: the next one goes without
        # A server that refuses both names of one field would be asked for ever.
        is_tried = name in self._refused or {name, *self._refused} >= LIMIT
        other = self.dialect.without(name) if name and not is_tried else None
        if other is None or other.sends(name):
            raise refused.stopped from None
        self._refused[name] = _setting(name, body)
        self._apply()
        self._keep()

    def took(self, body: Json) -> None:
        """The server answered this. What it refused meanwhile of another request it does take, then."""
        new = _settings(body) - self._taken
        if not new:
            return
        self._taken |= new
        if not new.isdisjoint(self._refused.values()):
            self._taken_after_all |= {name for name, setting in self._refused.items() if setting in new}
            self._refused = {name: setting for name, setting in self._refused.items() if setting not in new}
            self._apply()
            self._keep()

    def _name(self, refused: RefusedSetting, body: Json) -> str:
        """Of the setting: where the server doesn't say, what it has never taken, else anything; empty where nothing
        is left that can be left out."""
        if refused.name != UNNAMED:
            return refused.name
        there = [
            name
            for name in _FIRST_TO_GO
            if name in body and not (self.dialect.without(name) or self.dialect).sends(name)
        ]
        return next((name for name in there if name not in self._taken), next(iter(there), ""))

    def _apply(self) -> None:
        self.dialect = self._plain
        for name in self._refused:
            self.dialect = self.dialect.without(name) or self.dialect

    def _keep(self) -> None:
        if self._folder is not None:
            there = left_out(self._folder)
            # Another section of the recipe may ask the same LLM, and have learned something else.
            names = [name for name in there.get(self._llm, ()) if name not in self._taken_after_all]
            names += [name for name in self._refused if name not in names]
            known = there | {self._llm: _without_both_limits(names)}
            path = self._folder / FILE
            write_atomically(path, orjson.dumps({llm: names for llm, names in known.items() if names}))


def fields_of(body: Json) -> set[str]:
    """Names under which something of `body` may be refused."""
    found = set(body)
    if not found.isdisjoint(THOUGHTS):
        found.add("reasoning")
    if body["messages"][0]["role"] == "system":
        found.add("system")
    return found


def _settings(body: Json) -> set[str]:
    found = fields_of(body).intersection(_SETTINGS)
    if "temperature" in body:
        found.add(_setting("temperature", body))
    return found


def _setting(name: str, body: Json) -> str:
    """Servers that take one temperature refuse others; of other fields they take all values or none."""
    return f"temperature {body.get(name)}" if name == "temperature" else name
