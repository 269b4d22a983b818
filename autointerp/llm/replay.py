"""The request journal: a paid answer is never paid twice.

Between a plug-in and its LLM stands `Replayed`. It names each request by the digest of everything the
answer depends on, serves what was answered before, and writes every new answer down before handing it on.
`Elsewhere` is another run's memory of the same features: what it has is taken over instead of paid.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from autointerp.journal import Journal, Part
from autointerp.llm.exchange import Reply, Request, Usage
from autointerp.llm.front import InFront
from autointerp.llm.metering import Meter, metered_by, total
from autointerp.llm.protocol import LLM, LLMIdentity
from autointerp.prompting import Prompt
from autointerp.types import Json, digest


class Limited(InFront):
    """An LLM that is asked at most so many things at once; who comes first is served first."""

    def __init__(self, llm: LLM, n_in_flight: int) -> None:
        super().__init__(llm)
        self._free = asyncio.Semaphore(n_in_flight)

    async def answer(self, request: Request) -> Reply:
        async with self._free:
            return await request.to(self._llm)

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        async with self._free:
            return await self._llm.logprobs(prompt, continuation)

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        async with self._free:
            return await self._llm.fill(prompt, pieces, filler, labels)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        async with self._free:
            return await self._llm.embed(texts)


def request_key(identity: LLMIdentity, request: Request) -> str:
    """Names a request for text by all that its answer depends on: who is asked, and for what."""
    r = request
    asked: list[Any] = [r.max_tokens, r.temperature, r.choices, r.label_tokens, r.seed, r.index]
    if r.schema is not None:  # left out where there is none: names from before it could be asked for stay
        asked.append(r.schema)
    return digest("generate", identity, [(turn.role, turn.content) for turn in r.prompt.messages], asked)


REUSED: Final = "reused"
"""Stands in the usage record of an answer that was taken over, instead of what it cost."""
LOST: Final = "lost"
"""Stands in the usage record of tries that gave no answer, and may have cost something all the same."""
_PLAIN: Final = dataclasses.asdict(Usage())


class Elsewhere:
    """The replies to requests about one unit of features in all journals below a folder, whatever names that
    run gave its dictionaries, explainers and scorers. Read when first asked; nothing is written there.

    Units are the same ranges of feature indices in every run, so this holds no more than one unit's replies.
    """

    def __init__(self, folder: Path, unit: str) -> None:
        self._folder, self._unit = folder, unit

    @cached_property
    def _replies(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for folder in sorted({path.parent for path in self._folder.rglob(f"{self._unit}.*.jsonl")}):
            found |= Journal(folder, None).read(self._unit)
        return found

    def get(self, key: str) -> Json | None:
        """Without the key. Raises JournalCorrupt."""
        known = self._replies.get(key)
        return None if known is None else {name: value for name, value in known.items() if name != "key"}


class Replayed(InFront):
    """An LLM with a memory, for the requests of one unit."""

    def __init__(
        self, llm: LLM, requests: Journal, usage: Journal, unit: str, elsewhere: Elsewhere | None = None
    ) -> None:
        super().__init__(llm)
        self.n_reused = 0
        """Answers taken over from elsewhere; nothing was paid for them, and `usage` says no more than that."""
        self._elsewhere = elsewhere
        self._replies = requests.read(unit)
        self._requests = Part(requests, unit)
        self._usage = Part(usage, unit)
        self._turns: dict[str, asyncio.Lock] = {}
        self._n_lost = 0

    async def answer(self, request: Request) -> Reply:
        key = request_key(self.identity, request)
        async with self._turn(key):
            if (known := self._known(key)) is not None:
                return _reply(known)
            with self._noting(key) as meter:
                reply = await request.to(self._llm)
                record: Json = {
                    "text": reply.text,
                    "finish_reason": reply.finish_reason,
                    "label_logprobs": reply.label_logprobs,
                }
                self._remember(key, record)
                meter.use(reply.usage)
            return reply

    @contextmanager
    def _noting(self, key: str) -> Generator[Meter]:
        """Writes down what is used inside: with the answer, or without one where there is none."""
        meter = Meter()
        try:
            with metered_by(meter):
                yield meter
        except BaseException:
            if meter.used:
                self._n_lost += 1
                # Such a try may be lost again in each process, and of equal keys only the first one counts.
                name = digest("lost", self._usage.open().name, self._n_lost)
                self._usage.append(name, {LOST: True} | record_of(total(meter.used)))
                meter.noted()
            raise
        self._usage.append(key, record_of(total(meter.used)))
        meter.noted()

    def _turn(self, key: str) -> asyncio.Lock:
        """Of two equal requests at once the second waits for the first's answer."""
        return self._turns.setdefault(key, asyncio.Lock())

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        key = digest("logprobs", self.identity, [(t.role, t.content) for t in prompt.messages], continuation)
        async with self._turn(key):
            if (known := self._known(key)) is None:
                with self._noting(key):
                    known = {"logprobs": await self._llm.logprobs(prompt, continuation)}
                    self._remember(key, known)
            return known["logprobs"]

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        turns = [(turn.role, turn.content) for turn in prompt.messages]
        key = digest("fill", self.identity, turns, list(pieces), filler, list(labels))
        async with self._turn(key):
            if (known := self._known(key)) is None:
                with self._noting(key):
                    known = {"filled": await self._llm.fill(prompt, pieces, filler, labels)}
                    self._remember(key, known)
            return known["filled"]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        key = digest("embed", self.identity, list(texts))
        async with self._turn(key):
            if (known := self._known(key)) is None:
                with self._noting(key):
                    known = {"vectors": await self._llm.embed(texts)}
                    self._remember(key, known)
            return known["vectors"]

    def close_files(self) -> None:
        """Closes this unit's files; the LLM stays open for the next unit."""
        self._requests.close()
        self._usage.close()

    async def close(self) -> None:
        self.close_files()
        await super().close()

    def _known(self, key: str) -> Json | None:
        known = self._replies.get(key)
        if known is None and self._elsewhere is not None and (known := self._elsewhere.get(key)) is not None:
            self._remember(key, known)
            self._usage.append(key, {REUSED: True})
            self.n_reused += 1
        return known

    def _remember(self, key: str, record: Json) -> None:
        self._requests.append(key, record)
        self._replies[key] = record


def record_of(usage: Usage) -> Json:
    """What is nothing is left out."""
    return {name: value for name, value in dataclasses.asdict(usage).items() if value != _PLAIN[name]}


def _reply(record: dict[str, Any]) -> Reply:
    return Reply(record["text"], record["finish_reason"], record["label_logprobs"])
