"""What a run will take, told before it starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.bench.made_up_run import DICTIONARY, make_run
from autointerp.cli import app
from autointerp.llm.left_out import FILE
from autointerp.progress import Silent
from autointerp.publish.folder import build
from autointerp.publish.manifest import Options
from autointerp.run import Run
from autointerp.stages.expected import expected
from autointerp.types import Json
from fault_server import Behaviour, FaultServer, ok, status
from here import records
from tiny import Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
DETECTION: Json = {"use": "detection"}
FUZZING: Json = {"use": "fuzzing"}


@pytest.mark.parametrize(
    ("sampling", "scorers", "a_feature"),
    [
        # 1 to explain; of 100 windows of the headline 10 a prompt; 40 hard ones in prompts of their own.
        ({}, [DETECTION], 1 + 10 + 4),
        ({}, [FUZZING], 1 + 10),
        ({}, [DETECTION, FUZZING], 1 + 14 + 10),
        ({"n_same_token": 0, "n_neighbour": 0}, [DETECTION], 1 + 10),
        ({"n_same_document": 3, "n_density": 8}, [DETECTION], 1 + 10 + 6),
        ({"n_heldout": 7, "n_heldout_silent": 6}, [DETECTION | {"packing": 6}], 1 + 3 + 7),
    ],
)
def test_requests_are_counted_with_those_about_hard_windows(
    made: Tiny, tmp_path: Path, sampling: Json, scorers: list[Json], a_feature: int
) -> None:
    recipe = made.recipe(
        llms={"explainer": SCRIPTED, "judge": SCRIPTED},
        features={"n": 3},
        scorers={str(n): section for n, section in enumerate(scorers)},
        sampling=sampling,
    )
    _, run = pipeline.prepare(recipe, tmp_path / "run")
    assert sum(one.n_requests for one in asyncio.run(expected(run))) == 3 * a_feature
    free = recipe | {"llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}}}
    _, run = pipeline.prepare(free, tmp_path / "free")
    assert asyncio.run(expected(run)) == []


class Notes(Silent):
    """Keeps what the user should read."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def refusing(_number: int, body: Json) -> Behaviour:
    """A server that gives no log-probabilities and has its own temperature."""
    for name in ("logprobs", "temperature"):
        if name in body:
            return status(400, {"message": f"{name} is not supported by this model", "param": name})
    return ok("yes" if body["max_tokens"] < 20 else "EXPLANATION: words\nLABEL: words")


def test_what_the_check_learned_the_run_knows_and_its_readers_are_told(made: Tiny, tmp_path: Path) -> None:
    """Each setting is refused once: in the check. A process that goes on knows it too."""
    progress = Notes()
    with FaultServer(refusing) as server:
        llm = {"use": "openai", "model": "tiny", "base_url": server.url}
        recipe = made.recipe(
            llms={"explainer": llm, "judge": llm},
            features={"n": 2},
            scorers={"detection": {"use": "detection", "packing": "one"}},
            controls=None,
        )
        run = pipeline.explain(recipe, out=tmp_path / "run", progress=progress)
        refused = [r.body for r in server.requests if "logprobs" in r.body or "temperature" in r.body]
        assert len(refused) == 2
        assert sum("tiny refuses temperature, logprobs" in said for said in progress.said) == 1
        for record in run.score("layers.1", "plain", "detection").records():
            assert "1 window a prompt, by the answer's text" in record["protocol"]
            assert "; without temperature, which the server refuses" in record["protocol"]
        before, n = records(run.path, "score"), len(server.requests)
        more = pipeline.explain(recipe | {"features": {"n": 3}}, out=tmp_path / "run")
        after = [r.body for r in server.requests[n:]]
    assert after and not any("logprobs" in body or "temperature" in body for body in after)
    (place,) = before
    assert set(before[place]) < set(records(more.path, "score")[place])
    done = CliRunner().invoke(app, ["status", str(run.path)])
    assert "tiny refuses temperature, logprobs" in done.output
    build(Run.open(run.path), tmp_path / "set", Options(), to="org/name", licence="mit")
    assert "The server of `tiny` refused temperature, logprobs" in (tmp_path / "set/README.md").read_text()


def test_what_is_learned_in_the_run_itself_is_in_its_first_scores(tmp_path: Path) -> None:
    """No check comes before a run whose cache is there: it learns from the first requests of its scorers."""
    with FaultServer(refusing) as server:
        section = {"use": "openai", "model": "tiny", "base_url": server.url}
        run = make_run(
            tmp_path / "run",
            4,
            llms={"explainer": section, "judge": section},
            scorers={"detection": {"use": "detection", "packing": "one"}},
        )
        pipeline.run_line(run)
    (protocol,) = {record["protocol"] for record in run.score(DICTIONARY, "plain", "detection").records()}
    assert "by the answer's text" in protocol and "; without temperature" in protocol
    assert (run.path / FILE).is_file()
