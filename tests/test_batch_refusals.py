"""Settings that a server refuses of batches: left out of the next file, once each, and no answer paid for twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import orjson
import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import LLMStopped, LLMUnavailable, Pending
from autointerp.llm.batch import Batch, BatchLLM
from autointerp.llm.batch_import import import_answers
from autointerp.llm.exchange import Reply
from autointerp.llm.left_out import FILE, left_out
from autointerp.llm.protocol import Awaited, Place
from autointerp.progress import Silent
from autointerp.prompting import Prompt, Template
from autointerp.run import Run
from autointerp.types import Json
from batch_server import Answer, BatchServer, answered, failed_row, ok_row, reply, write_rows
from fault_server import FaultServer, ok, status
from here import device_here, records
from tiny import Tiny


@pytest.fixture(autouse=True)
def no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


UNSUPPORTED: dict[str, Json] = {
    name: {"message": f"Unsupported parameter: '{name}' is not supported.", "param": name}
    for name in ("max_tokens", "max_completion_tokens", "temperature", "seed")
} | {"system": {"message": "System role not supported", "type": "BadRequestError"}}
NOBODY: Json = {"message": "No endpoints found that can handle the requested parameters."}


def refused_of(body: Json, *names: str) -> str | None:
    """The first of these that a request holds."""
    has_system = body["messages"][0]["role"] == "system"
    return next((name for name in names if (has_system if name == "system" else name in body)), None)


def refusing(*names: str) -> Answer:
    def answer(body: Json) -> Json:
        name = refused_of(body, *names)
        return ok_row("yes") if name is None else failed_row(400, UNSUPPORTED[name])

    return answer


def prompt(text: str) -> Prompt:
    turns = (("system", jinja2.Template("be brief")), ("user", jinja2.Template("{{ user }}")))
    return Prompt(Template("test", "0", turns), {"user": text})


async def asked_of(
    llm: BatchLLM, texts: str, then: Callable[[list[Awaited]], None] = lambda awaited: None
) -> list[Reply | BaseException]:
    """What each request of a letter comes to, in as many passes as it takes; `then` sees to awaited files."""
    await llm.open(Silent())
    while True:
        asking = (llm.generate(prompt(text), max_tokens=5, seed=3) for text in texts)
        found = await asyncio.gather(*asking, return_exceptions=True)
        if not any(isinstance(one, Pending) for one in found):
            return found
        await llm.send(Silent())
        if awaited := await llm.fetch(Silent()):
            then(awaited)
            await llm.close()
            return found


def asked(
    folder: Path,
    url: str,
    texts: str = "abc",
    then: Callable[[list[Awaited]], None] = lambda awaited: None,
    **options: Any,
) -> tuple[list[Reply | BaseException], tuple[str, ...]]:
    """In a process of its own, as far as the LLM can tell; with what is left out behind it."""

    async def main() -> tuple[list[Reply | BaseException], tuple[str, ...]]:
        waits = {"first_poll_s": 0.01, "first_wait_s": 0.01}
        llm = Batch("tiny", base_url=url, **waits | options).connect(Place(folder=folder))
        try:
            return await asked_of(llm, texts, then), llm.capabilities.left_out
        finally:
            await llm.close()

    return asyncio.run(main())


def bodies(content: bytes) -> list[Json]:
    return [orjson.loads(line)["body"] for line in content.splitlines()]


def sent(server: BatchServer) -> list[list[Json]]:
    """The requests of each batch."""
    return [bodies(server.files[batch["input_file_id"]]) for batch in server.batches]


@pytest.mark.parametrize("max_batches", [1, 3])
def test_each_refused_setting_costs_one_batch_and_none_of_those_that_may_fail(
    tmp_path: Path, max_batches: int
) -> None:
    names = ("max_tokens", "temperature", "seed", "system")
    with BatchServer(refusing(*names)) as server:
        replies, found = asked(tmp_path, server.url, max_batches=max_batches)
        batches = sent(server)
        again, _ = asked(tmp_path, server.url, "d")
        assert sent(server)[len(batches) :] == [[sent(server)[-1][0]]], "what was learned is known at once"
    assert [one.text for one in (*replies, *again) if isinstance(one, Reply)] == ["yes"] * 4
    assert found == names and left_out(tmp_path) == {"tiny": list(names)}
    assert [len(batch) for batch in batches] == [3] * 5
    assert [refused_of(batch[0], *names) for batch in batches] == [*names, None]
    assert batches[-1][0]["max_completion_tokens"] == 5
    assert [turn["role"] for turn in batches[-1][0]["messages"]] == ["user"]


def test_rows_that_were_answered_are_not_asked_for_again(tmp_path: Path) -> None:
    """Half of the rows refuse `seed`, and others in that file were answered with it: they failed for now."""

    def answer(body: Json) -> Json:
        stray = body["messages"][-1]["content"] in "ab" and len(server.batches) == 1
        return failed_row(400, UNSUPPORTED["seed"]) if stray else ok_row("yes")

    with BatchServer(answer) as server:
        replies, found = asked(tmp_path, server.url, "abcd")
        assert [sorted(b["messages"][-1]["content"] for b in one) for one in sent(server)] == [
            list("abcd"),
            ["a", "b"],
        ]
        assert all("seed" in body for batch in sent(server) for body in batch)
    assert found == () and all(isinstance(one, Reply) for one in replies) and not (tmp_path / FILE).exists()


def test_what_the_server_took_of_some_and_refuses_of_others_ends_after_the_allowed_batches(
    tmp_path: Path,
) -> None:
    """`a` is refused in every batch, beside requests that are answered."""

    def answer(body: Json) -> Json:
        return (
            failed_row(400, UNSUPPORTED["seed"]) if body["messages"][-1]["content"] == "a" else ok_row("yes")
        )

    with BatchServer(answer) as server:
        replies, found = asked(tmp_path, server.url, "ab", max_batches=2)
        n_asked = Counter(body["messages"][-1]["content"] for batch in sent(server) for body in batch)
    # The second batch holds `a` alone, where nothing says that others are answered with a seed, but the first does.
    assert found == () and n_asked == {"a": 2, "b": 1}
    assert isinstance(replies[0], LLMUnavailable) and "took 'seed' before" in str(replies[0])


def test_a_setting_that_is_not_named_is_found_one_a_batch(tmp_path: Path) -> None:
    def answer(body: Json) -> Json:
        return failed_row(404, NOBODY) if refused_of(body, "reasoning") else ok_row("yes")

    with BatchServer(answer) as server:
        extra = {"reasoning": {"effort": "none"}}
        replies, found = asked(tmp_path, server.url, extra_body=extra)
        assert [sorted(body.keys() & {"seed", "reasoning"}) for (body, *_) in sent(server)] == [
            ["reasoning", "seed"], ["reasoning"], []
        ]  # fmt: skip
    assert found == ("seed", "reasoning") and all(isinstance(one, Reply) for one in replies)


def test_a_server_that_refuses_both_names_of_a_limit_stops_the_run(tmp_path: Path) -> None:
    with BatchServer(refusing("max_tokens", "max_completion_tokens")) as server:
        # Once more in the next process, whose first file goes without the first name already.
        for n_batches in (2, 3):
            with pytest.raises(LLMStopped, match=r"refuses a setting .400.*max_tokens_field"):
                asked(tmp_path, server.url)
            assert len(server.batches) == n_batches


@pytest.mark.parametrize("where", ["rows", "file"])
def test_what_extra_body_sends_all_the_same_stops_the_run(tmp_path: Path, where: str) -> None:
    """Nothing can be left out: one batch, and one more in a process that knows of the refusal."""
    with BatchServer(refusing("max_tokens")) as server:
        if where == "file":
            errors = {"data": [UNSUPPORTED["max_tokens"]]}
            server.on["created"] = lambda: server.batches[-1].update(status="failed", errors=errors)
        for n_batches in (1, 2):
            with pytest.raises(LLMStopped, match=r"refuses a setting"):
                asked(tmp_path, server.url, extra_body={"max_tokens": 100})
            assert len(server.batches) == n_batches
            (tmp_path / "usage").mkdir(exist_ok=True)
            identity = str(Batch("tiny", extra_body={"max_tokens": 100}).identity())
            (tmp_path / FILE).write_bytes(orjson.dumps({identity: ["max_tokens"]}))


@pytest.mark.parametrize("line", [2, None, "?"])
def test_a_batch_whose_validation_fails_for_settings_is_asked_again_without(
    tmp_path: Path, line: object
) -> None:
    """Two errors at once; the file that was refused is not sent again, and nothing of it was paid for."""
    with BatchServer(lambda body: ok_row("yes")) as server:

        def validate() -> None:
            body = sent(server)[-1][1]
            errors = [
                UNSUPPORTED[name] | {"code": "unsupported_parameter", "line": line}
                for name in ("temperature", "seed")
                if name in body
            ]
            if errors:
                server.batches[-1] |= {"status": "failed", "errors": {"data": errors}}

        server.on["created"] = validate
        replies, found = asked(tmp_path, server.url, max_batches=1)
        assert len(server.uploads) == len(server.batches) == 2
        assert server.uploads[0] != server.uploads[1]
    assert found == ("temperature", "seed") and all(isinstance(one, Reply) for one in replies)


@pytest.mark.parametrize("where", ["upload", "create"])
def test_a_server_that_looks_into_files_at_once_is_asked_again_without(tmp_path: Path, where: str) -> None:
    with BatchServer(lambda body: ok_row("yes")) as server:

        def look() -> Any:
            has = "seed" in bodies(server.uploads[-1])[0]
            return reply({"error": UNSUPPORTED["seed"]}, 400) if has else None

        server.on[where] = look
        replies, found = asked(tmp_path, server.url, max_rows=2)
        assert found == ("seed",) and all(isinstance(one, Reply) for one in replies)
        assert len(server.batches) == 2 and len(server.uploads) == 4  # two files, each written twice


def test_a_validation_that_fails_for_what_is_not_sent_stops_and_says_why(tmp_path: Path) -> None:
    with BatchServer(lambda body: ok_row("yes")) as server:
        errors = {"data": [UNSUPPORTED["temperature"]]}
        server.on["created"] = lambda: server.batches[-1].update(status="failed", errors=errors)
        with pytest.raises(LLMStopped, match="refuses a setting"):
            asked(tmp_path, server.url)
        assert ["temperature" in body for body, *_ in sent(server)] == [True, False]


def test_files_answered_by_hand_teach_as_well_and_only_once(tmp_path: Path) -> None:
    """Whoever deletes what was learned has it tried again, whatever old answers say."""
    answer = refusing("seed")

    def run_batch(awaited: list[Awaited]) -> None:
        for file in awaited:
            write_rows(file.answers, answered(file.requests, answer))

    def ask() -> tuple[list[Reply | BaseException], tuple[str, ...]]:
        return asked(tmp_path, "http://127.0.0.1:9/v1", then=run_batch, submit=False)

    assert ask()[1] == ()
    waiting, found = ask()
    assert found == ("seed",) and all(isinstance(one, Pending) for one in waiting)
    replies, _ = ask()
    assert all(isinstance(one, Reply) for one in replies)
    files = sorted(tmp_path.glob("batch/*/requests-*.jsonl"))
    assert [["seed" in body for body in bodies(path.read_bytes())] for path in files] == [
        [True] * 3,
        [False] * 3,
    ]
    (tmp_path / FILE).unlink()
    assert ask()[1] == ()


def test_imported_answers_teach_as_well(tmp_path: Path) -> None:
    """One of three answers is there, so that the rest is asked again; none twice."""
    given: list[Path] = []

    def import_some(awaited: list[Awaited]) -> None:
        rows = answered(awaited[0].requests, refusing("seed"))
        if not given:
            rows[0] = {"custom_id": rows[0]["custom_id"], "text": "by hand"}
        given.append(tmp_path / f"{len(given)}.jsonl")
        write_rows(given[-1], rows)
        (taken,) = import_answers(tmp_path / "run" / "batch", [given[-1]])
        assert len(taken.settings) == (2 if len(given) == 1 else 0)

    def ask() -> tuple[list[Reply | BaseException], tuple[str, ...]]:
        return asked(tmp_path / "run", "http://127.0.0.1:9/v1", then=import_some, submit=False)

    ask()
    # What was answered by hand doesn't say that the server takes a seed.
    waiting, _ = ask()
    assert sum(isinstance(one, Pending) for one in waiting) == 2
    replies, found = ask()
    assert sorted(one.text for one in replies if isinstance(one, Reply)) == ["by hand", "yes", "yes"]
    assert found == ("seed",)


def test_imported_answers_teach_what_the_server_takes(tmp_path: Path) -> None:
    """Two of three were answered with a seed: the third one met a fault."""

    def import_some(awaited: list[Awaited]) -> None:
        rows = answered(awaited[0].requests, lambda body: ok_row("yes"))
        if len(rows) == 3:
            rows[2] = {"custom_id": rows[2]["custom_id"], **failed_row(400, UNSUPPORTED["seed"])}
        write_rows(tmp_path / "rows.jsonl", rows)
        import_answers(tmp_path / "run" / "batch", [tmp_path / "rows.jsonl"])

    def ask() -> tuple[list[Reply | BaseException], tuple[str, ...]]:
        return asked(tmp_path / "run", "http://127.0.0.1:9/v1", then=import_some, submit=False)

    ask()
    waiting, _ = ask()
    assert sum(isinstance(one, Pending) for one in waiting) == 1
    replies, found = ask()
    assert found == () and all(isinstance(one, Reply) for one in replies)


def test_answers_through_a_pipe_teach_as_well_and_twice_imported_is_once(tmp_path: Path) -> None:
    found: list[list[str]] = []

    def import_all(awaited: list[Awaited]) -> None:
        rows = answered(awaited[0].requests, refusing("seed"))
        for _ in range(2):
            end, other = os.pipe()
            os.write(other, b"".join(orjson.dumps(row) + b"\n" for row in rows))
            os.close(other)
            (taken,) = import_answers(tmp_path / "batch", [Path(f"/dev/fd/{end}")])
            os.close(end)
            (errors,) = tmp_path.glob("batch/*/errors-*")
            found.append([orjson.loads(line)["custom_id"] for line in errors.read_bytes().splitlines()])
            assert sorted(taken.settings) == sorted(found[-1]) == sorted(row["custom_id"] for row in rows)

    address = "http://127.0.0.1:9/v1"
    asked(tmp_path, address, then=import_all, submit=False)
    assert len(found) == 2 and len(found[1]) == 3
    assert asked(tmp_path, address, submit=False)[1] == ("seed",)


# --- whole runs ------------------------------------------------------------------------------------------


def text_for(body: Json) -> str:
    said = "\n".join(turn["content"] for turn in body["messages"])
    name = hashlib.blake2b(said.encode(), digest_size=12).hexdigest()
    if body["max_completion_tokens"] == 300:  # the explainer's
        return f"EXPLANATION: words like {name[:6]}\nLABEL: words"
    return "\n".join(f"{n}: {'yes' if int(name, 16) >> n & 1 else 'no'}" for n in range(1, 41))


def test_a_run_has_the_records_of_one_that_asks_each_by_itself_and_says_what_it_went_without(
    made: Tiny, tmp_path: Path
) -> None:
    names = ("max_tokens", "temperature")

    def recipe(use: str, url: str) -> Json:
        llm = {"use": use, "model": "tiny", "base_url": url, "first_wait_s": 0.01}
        llm |= {"first_poll_s": 0.01} if use == "batch" else {}
        return made.recipe(features={"n": 4}, llms={"explainer": llm, "judge": llm})

    def row(body: Json) -> Json:
        name = refused_of(body, *names)
        return ok_row(text_for(body)) if name is None else failed_row(400, UNSUPPORTED[name])

    def single(_number: int, body: Json) -> Any:
        name = refused_of(body, *names)
        return ok(text_for(body)) if name is None else status(400, UNSUPPORTED[name])

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with device_here():
        with BatchServer(row) as server:
            pipeline.explain(recipe("batch", server.url), out=ours)
            paid = Counter(
                orjson.dumps(body["messages"])
                for one in sent(server)
                for body in one
                if not refused_of(body, *names)
            )
            assert set(paid.values()) == {1}
        with FaultServer(single) as other:
            pipeline.explain(recipe("openai", other.url), out=theirs)
    assert records(ours) == records(theirs) and left_out(ours) == left_out(theirs) == {"tiny": list(names)}
    scores = list(Run.open(ours).existing("score", "layers.1", "plain", "detection").records())
    assert scores and all(
        "without temperature, which the server refuses" in one["protocol"] for one in scores
    )
    said = CliRunner().invoke(app, ["status", str(ours)]).output
    assert "tiny refuses max_tokens, temperature" in said
