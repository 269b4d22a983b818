"""The process that `bench/llm.py` measures in."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import openai
import orjson

from autointerp.bench.instant_server import answer_to
from autointerp.bench.llm import LLMBench, Pace
from autointerp.bench.memory import peak_rss
from autointerp.llm import chat_format, pacing
from autointerp.llm.chat_request import chat_body
from autointerp.llm.dialects import Dialect
from autointerp.llm.endpoints import Endpoint
from autointerp.llm.exchange import Reply, Request
from autointerp.llm.protocol import ByRequest, Capabilities, LLMIdentity
from autointerp.llm.server_errors import Server
from autointerp.progress import Silent, Stop
from autointerp.prompting import Prompt
from autointerp.recipe import LLMSections
from autointerp.run import Run
from autointerp.stages.asked import Asked
from autointerp.stages.flow import run_flow
from autointerp.stages.llms import connected
from autointerp.types import Json

N_TURNS: Final = 4
N_BODIES: Final = 2_000
"""Kept for the bare SDK to send again and again."""


class _Answering(ByRequest):
    """An LLM without a server, which may note down what it would send."""

    identity = LLMIdentity("instant")
    capabilities = Capabilities()

    def __init__(self) -> None:
        self.n_asked = 0
        self.bodies: list[Json] | None = None

    async def answer(self, request: Request) -> Reply:
        self.n_asked += 1
        body = chat_body("instant", Dialect(), request)
        if self.bodies is not None and len(self.bodies) < N_BODIES:
            self.bodies.append(body)
        return Reply(answer_to(request.max_tokens))

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise NotImplementedError

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError

    async def close(self) -> None:
        """Holds nothing."""


class _Bench:
    """One run, worked on again from the start as often as is wanted."""

    def __init__(self, folder: Path, url: str, n_in_flight: int) -> None:
        run = Run.open(folder / "run")
        section = {"use": "openai", "model": "instant", "base_url": url, "timeout_s": 120.0}
        resources = dataclasses.replace(run.recipe.resources, n_in_flight=n_in_flight)
        recipe = dataclasses.replace(run.recipe, llms=LLMSections(section, section), resources=resources)
        self.run = dataclasses.replace(run, recipe=recipe)
        self.url, self.n_in_flight = url, n_in_flight
        self._a_feature = 0.0
        """Requests, as `alone` has counted them."""

    def path(self, first: int) -> Pace:
        """Up to feature `first`."""

        async def work() -> None:
            async with connected(self._up_to(first), Silent()) as llms:
                await run_flow(self._up_to(first), llms, Silent(), Stop())

        before = self._n_kept()
        return _timed(work, lambda: self._n_kept() - before)

    def unkept(self, first: int) -> Pace:
        async def work() -> None:
            async with connected(self._up_to(first), Silent()) as llms:
                unpaid = {role: Asked(asked.llm, paid=False) for role, asked in llms.items()}
                await run_flow(self._up_to(first), unpaid, Silent(), Stop())

        return _timed(work, lambda: first * self._a_feature)

    def alone(self, first: int, *, bodies: list[Json] | None = None) -> Pace:
        llm = _Answering()
        llm.bodies = bodies

        async def work() -> None:
            asked = Asked(llm, paid=False)
            await run_flow(self._up_to(first), {"explainer": asked, "judge": asked}, Silent(), Stop())

        found = _timed(work, lambda: llm.n_asked)
        self._a_feature = llm.n_asked / first
        return found

    def bare(self, bodies: list[Json], n: int, *, raw: bool) -> Pace:
        async def work() -> None:
            client = openai.AsyncOpenAI(
                api_key="none",
                base_url=self.url,
                max_retries=0,
                http_client=openai.DefaultAioHttpClient(trust_env=False),
            )
            left = islice(cycle(bodies), n)
            async with client:
                await asyncio.gather(*(_ask(client, left, raw=raw) for _ in range(self.n_in_flight)))

        return _timed(work, lambda: n)

    def client(self, bodies: list[Json], n: int) -> Pace:
        """The part of `path` between a body and its reply."""

        async def work() -> None:
            server = Server(self.url, "instant", "", "")
            endpoint = Endpoint(server, "", 120.0, pacing.Pace(n_in_flight=self.n_in_flight))
            left = islice(cycle(bodies), n)

            async def ask() -> None:
                for body in left:
                    await endpoint.ask("/chat/completions", body, 1, chat_format.read_reply)

            await asyncio.gather(*(ask() for _ in range(self.n_in_flight)))
            await endpoint.close()

        return _timed(work, lambda: n)

    def forget(self) -> None:
        """Everything that was made of the samples."""
        for stage in ("explain", "probe", "score", "requests", "usage", "failed"):
            shutil.rmtree(self.run.path / stage, ignore_errors=True)

    def _up_to(self, first: int) -> Run:
        features = dataclasses.replace(self.run.recipe.features, ids=None, first=first)
        return dataclasses.replace(self.run, recipe=dataclasses.replace(self.run.recipe, features=features))

    def _n_kept(self) -> int:
        parts = (self.run.path / "requests").rglob("*.jsonl")
        return sum(path.read_bytes().count(b"\n") - 1 for path in parts)


async def _ask(client: openai.AsyncOpenAI, left: Iterator[Json], *, raw: bool) -> None:
    import httpx2

    create: Any = client.chat.completions.create
    for body in left:
        if raw:
            response = await client.post("/chat/completions", body=body, cast_to=httpx2.Response)
            orjson.loads(response.content)
        else:
            await create(**body)


def _timed(work: Callable[[], Awaitable[None]], n_requests: Callable[[], int | float]) -> Pace:
    async def run() -> None:
        await work()

    began, cpu_began = time.monotonic(), time.process_time()
    asyncio.run(run())
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_began
    return Pace(round(n_requests()), wall_s, cpu_s)


def _sum(paces: Sequence[Pace]) -> Pace:
    columns = [(pace.n_requests, pace.wall_s, pace.cpu_s) for pace in paces]
    n_requests, wall_s, cpu_s = (sum(column) for column in zip(*columns, strict=True))
    return Pace(int(n_requests), wall_s, cpu_s)


def _measure(folder: Path, url: str, n_features: int, n_in_flight: int, compare: bool) -> LLMBench:
    bench = _Bench(folder, url, n_in_flight)
    path = bench.path(n_features)
    peak = peak_rss()
    if not compare:
        return LLMBench(n_features, n_in_flight, peak, path)
    a_turn = max(1, n_features // (2 * N_TURNS))
    bodies: list[Json] = []
    bench.forget()
    alone = bench.alone(a_turn, bodies=bodies)
    bench.forget()
    unkept = bench.unkept(a_turn)
    bench.forget()
    for raw in (False, True):
        bench.bare(bodies, 1, raw=raw)  # what the SDK loads with its first request is nobody's cost
    paths, bares, raws, clients = list[Pace](), list[Pace](), list[Pace](), list[Pace]()
    for first in range(a_turn, N_TURNS * a_turn + 1, a_turn):
        paths.append(bench.path(first))
        bares.append(bench.bare(bodies, paths[-1].n_requests, raw=False))
        raws.append(bench.bare(bodies, paths[-1].n_requests, raw=True))
        clients.append(bench.client(bodies, paths[-1].n_requests))
    in_turn = _sum(paths), _sum(bares), _sum(raws), _sum(clients)
    return LLMBench(n_features, n_in_flight, peak, *in_turn, unkept, alone)


if __name__ == "__main__":
    asked_folder, asked_url, *numbers = sys.argv[1:]
    n, at_once, with_others = map(int, numbers)
    measured = _measure(Path(asked_folder), asked_url, n, at_once, bool(with_others))
    sys.stdout.buffer.write(orjson.dumps(dataclasses.asdict(measured)))
