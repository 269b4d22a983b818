"""A run -> Neuronpedia's API, call by call. What was taken is noted in the run, so that another call of the same
command sends what is missing.

    uploads/<address and source>/<dictionary>/calls.<attempt>.jsonl   a feature a record: as what it was sent
    uploads/<address and source>/<dictionary>/pending.json            a call that may have been taken, or not

The server keeps a feature's row once, but windows and explanations as often as they come. So where nobody knows
whether a call was taken the server is asked, before anything is sent again; and a feature that was taken before is
never sent again, also where the run has learned more of it since; that is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson

from autointerp import __version__
from autointerp.errors import PublishError
from autointerp.files import write_atomically
from autointerp.journal import Journal, Part
from autointerp.neuronpedia.calls import Call, Cuts, body_of, calls_of, key_of
from autointerp.neuronpedia.exported import Exporter
from autointerp.neuronpedia.naming import Asked, Names, names_of
from autointerp.neuronpedia.server import Neuronpedia
from autointerp.progress import Progress, Silent, Stop, until_stopped
from autointerp.publish.secrets import Guard
from autointerp.run import Run
from autointerp.types import Json, digest

FOLDER = "uploads"
_CALLS = "calls"
_PENDING = "pending.json"


@dataclass(slots=True)
class Uploaded:
    """What was sent, or would be."""

    cuts: Cuts = field(default_factory=Cuts)
    n_features: int = 0
    n_calls: int = 0
    n_before: int = 0
    """Features that were taken by an earlier call of the command."""
    n_changed: int = 0
    """Of these, those that the run would send otherwise now."""
    lines: list[str] = field(default_factory=list[str])
    """A call each, where nothing is sent."""


def upload(
    run: Run,
    url: str,
    asked: Asked,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
    first_wait_s: float = 1.0,
) -> Uploaded:
    """Raises PublishError, SecretFound (before anything of that dictionary is sent), HubError, Interrupted."""
    names = names_of(run, asked)
    if not any(run.existing("sample", name).units() for name in names):
        raise PublishError(f"{run.path} holds no sampled feature yet. First: autointerp resume {run.path}")
    work = _Upload(run, url, names, progress or Silent(), stop or Stop())
    if dry_run:
        work.look()
    else:
        with run.lock():
            asyncio.run(work.send(Neuronpedia(url, first_wait_s=first_wait_s)))
    return work.done


def _note(part: Part, sent: dict[str, str]) -> None:
    for index, key in sent.items():
        part.append(index, {"sent": key})
    part.sync()


class _Upload:
    def __init__(self, run: Run, url: str, names: dict[str, Names], progress: Progress, stop: Stop) -> None:
        self._run, self._url, self._names = run, url, names
        self._progress, self._stop = progress, stop
        self.done = Uploaded()

    def _journal(self, dictionary: str) -> Journal:
        its = self._names[dictionary]
        place = digest(self._url, its.model, its.source)[:16]
        return Journal(self._run.path / FOLDER / place / dictionary, None, package=__version__)

    def look(self) -> None:
        """Says what would be sent."""
        for name in self._names:
            for number, call in enumerate(self._calls(name, self._journal(name)), start=1):
                size = len(orjson.dumps(call.body))
                self._count(call)
                self.done.lines.append(
                    f"{self._names[name].source}, call {number}: {len(call.keys)} features ({call.indices[0]} to "
                    f"{call.indices[-1]}), {call.n_activations:,} activations, {call.n_explanations:,} explanations, "
                    f"{size / 1e6:,.2f} MB"
                )

    async def send(self, server: Neuronpedia) -> None:
        for name in self._names:
            self._check_secrets(name)
        async with server:
            for name in self._names:
                journal = self._journal(name)
                n_sampled = sum(
                    len(self._run.existing("sample", name).read(unit)) for unit in self._units(name)
                )
                self._progress.begin("upload", n_sampled, "features")
                try:
                    await self._settle(server, journal)
                    with Part(journal, _CALLS) as part:
                        for call in self._calls(name, journal):
                            self._stop.check()
                            await self._send(server, journal, part, call)
                            self._count(call)
                            self._progress.advance(len(call.keys))
                finally:
                    self._progress.end()

    async def _send(self, server: Neuronpedia, journal: Journal, part: Part, call: Call) -> None:
        """Whatever ends this process before it is noted, the next one knows that the call may have been taken."""
        pending = journal.folder / _PENDING
        sent = {str(index): key for index, key in zip(call.indices, call.keys, strict=True)}
        first = call.body | {"features": call.body["features"][:1]}
        write_atomically(pending, orjson.dumps({"first": first, "sent": sent}))
        await until_stopped(server.upload(call.body), self._stop)
        _note(part, sent)
        pending.unlink()

    async def _settle(self, server: Neuronpedia, journal: Journal) -> None:
        """Asks after a call that an earlier command did not hear of. Raises HubError."""
        pending = journal.folder / _PENDING
        if not pending.is_file():
            return
        call: Json = orjson.loads(pending.read_bytes())
        if await until_stopped(server.has(call["first"]), self._stop):
            with Part(journal, _CALLS) as part:
                _note(part, call["sent"])
        pending.unlink()

    def _count(self, call: Call) -> None:
        self.done.n_calls += 1
        self.done.n_features += len(call.keys)

    def _units(self, dictionary: str) -> list[str]:
        return self._run.existing("sample", dictionary).units()

    def _check_secrets(self, dictionary: str) -> None:
        guard = Guard()
        for body in self._bodies(dictionary, Cuts()):
            guard.look(
                orjson.dumps(body).decode(), self._names[dictionary].source, f"feature {body['index']}"
            )
        guard.check()

    def _calls(self, dictionary: str, journal: Journal) -> Iterator[Call]:
        """Of what was not taken before."""
        sent = {key: record["sent"] for key, record in journal.read(_CALLS).items()}
        names = self._names[dictionary]

        def missing() -> Iterator[Json]:
            for body in self._bodies(dictionary, self.done.cuts):
                before = sent.get(str(body["index"]))
                if before is None:
                    yield body
                    continue
                self.done.n_before += 1
                self.done.n_changed += before != key_of(names, body)

        return calls_of(names, missing())

    def _bodies(self, dictionary: str, cuts: Cuts) -> Iterator[Json]:
        exporter = Exporter(self._run, dictionary, self._names[dictionary])
        for unit in self._units(dictionary):
            for feature in exporter.features(unit):
                if (body := body_of(feature, cuts)) is not None:
                    yield body
