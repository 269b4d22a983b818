"""Journals: what is written stays, what is torn is passed over, what is spoiled is named."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp import journal as journals
from autointerp.errors import (
    BudgetReached,
    DiskFull,
    Interrupted,
    JournalCorrupt,
    LLMError,
    LLMStopped,
    LLMUnavailable,
    Pending,
    RecipeChanged,
)
from autointerp.fill import Item, Unit, fill
from autointerp.journal import Journal, Part, differences, unit_of_feature
from autointerp.types import Json

MADE_FROM: Json = {"sampling": {"n_shown": 40}, "seed": 0}


def journal(folder: Path, made_from: Json | None = MADE_FROM) -> Journal:
    return Journal(folder, made_from, package="1")


def write(target: Journal, unit: str, keys: list[str], mark: str = "") -> Path:
    with Part(target, unit) as part:
        for key in keys:
            part.append(key, {"mark": mark})
        return part.open()


def test_records_come_back_and_a_part_begins_with_its_header(tmp_path: Path) -> None:
    path = write(journal(tmp_path), "000", ["a", "b"], "x")
    header, *records = map(orjson.loads, path.read_bytes().splitlines())
    for line in (header, *records):
        assert len(line.pop("crc32")) == 8
    assert header == {
        "schema": 1,
        "package": "1",
        "digest": journal(tmp_path).digest,
        "unit": "000",
        "attempt": 1,
    }
    assert records == [{"key": "a", "mark": "x"}, {"key": "b", "mark": "x"}]
    assert journal(tmp_path).read("000")["b"] == {"key": "b", "mark": "x"}


def test_nothing_is_created_by_a_part_without_records(tmp_path: Path) -> None:
    with Part(journal(tmp_path / "folder"), "000"):
        pass
    assert not (tmp_path / "folder").exists()


def test_two_processes_on_one_unit_write_two_files_and_the_lowest_attempt_wins(tmp_path: Path) -> None:
    first, second = Part(journal(tmp_path), "000"), Part(journal(tmp_path), "000")
    second.append("a", {"by": "opened first"})
    first.append("a", {"by": "opened second"})
    first.append("b", {"by": "opened second"})
    first.close()
    second.close()
    assert [path.name for path in journal(tmp_path).parts("000")] == ["000.0001.jsonl", "000.0002.jsonl"]
    assert {key: r["by"] for key, r in journal(tmp_path).read("000").items()} == {
        "a": "opened first",
        "b": "opened second",
    }


@given(cut=st.integers(min_value=0, max_value=400))
def test_a_file_cut_anywhere_keeps_its_whole_records(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    keys = ["a", "bé", "c"]
    path = write(journal(folder), "000", keys)
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    n_whole = content[:cut].count(b"\n") - 1
    assert list(journal(folder).read("000")) == keys[: max(n_whole, 0)]


def test_the_next_run_goes_on_beside_a_torn_file_and_never_touches_it(tmp_path: Path) -> None:
    torn = write(journal(tmp_path), "000", ["a", "b"])
    torn.write_bytes(torn.read_bytes()[:-5])
    before = torn.read_bytes()
    write(journal(tmp_path), "000", ["b"], "again")
    assert torn.read_bytes() == before
    assert journal(tmp_path).read("000")["b"]["mark"] == "again"


@pytest.mark.parametrize("line", [b"nonsense", b'{"other": 1}', b"[1]", b'{"key": "a"', b"\x00\x00"])
def test_an_unreadable_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = write(journal(tmp_path), "000", ["a", "b"])
    lines = path.read_bytes().split(b"\n")
    lines.insert(2, line)
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalCorrupt, match=r"000\.0001\.jsonl, line 3") as caught:
        journal(tmp_path).read("000")
    assert "Delete that line" in str(caught.value)


def test_records_of_other_settings_are_refused_and_the_field_is_named(tmp_path: Path) -> None:
    write(journal(tmp_path), "000", ["a"])
    changed = journal(tmp_path, {"sampling": {"n_shown": 20}, "seed": 0})
    with pytest.raises(RecipeChanged, match=r"sampling\.n_shown: was 40, is now 20"):
        changed.check()
    with pytest.raises(RecipeChanged):
        changed.read("000")


def test_differences_name_leaves() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c: was 2, is now None",
        "a.d: was None, is now 3",
    ]


def test_features_share_a_unit_by_index_alone() -> None:
    assert unit_of_feature(0) == unit_of_feature(255) == "000000000"
    assert unit_of_feature(256) == "000000256"


# --- a full disk ---------------------------------------------------------------------------------------


def test_a_full_disk_is_a_clear_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes 10 bytes of the third record and then no more."""
    part = Part(journal(tmp_path), "000")
    part.append("a", {})
    part.append("b", {})
    room = iter([10])

    def full(fd: int, data: bytes) -> int:
        for n in room:
            return os_write(fd, data[:n])
        raise OSError(errno.ENOSPC, "No space left on device")

    os_write = os.write
    monkeypatch.setattr(journals.os, "write", full)
    with pytest.raises(DiskFull, match=r"no room left for .*000\.0001\.jsonl"):
        part.append("c", {})
    monkeypatch.undo()
    with pytest.raises(journals.RunError, match="closed"):
        part.append("d", {})  # never behind a torn line
    assert list(journal(tmp_path).read("000")) == ["a", "b"]
    write(journal(tmp_path), "000", ["c"])
    assert list(journal(tmp_path).read("000")) == ["a", "b", "c"]


def test_a_really_full_file_system_is_a_clear_error(tmp_path: Path) -> None:
    """The kernel itself refuses: a limit on the size of files, in a process of its own."""
    code = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from autointerp.errors import DiskFull
        from autointerp.journal import Journal, Part
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        part = Part(Journal(Path(sys.argv[1]), None), "000")
        try:
            for n in range(1000):
                part.append(f"k{n:04d}", {"text": "x" * 50})
        except DiskFull as error:
            print(n, error)
    """)
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    n_written = int(result.stdout.split()[0])
    assert "intact" in result.stdout
    assert len(journal(tmp_path, None).read("000")) == n_written > 30


# --- fill ----------------------------------------------------------------------------------------------


def items(target: Journal, numbers: Iterable[int], work: Callable[[int], Awaitable[Json]]) -> Iterator[Item]:
    return (Item(target, f"k{number:03d}", lambda number=number: work(number)) for number in numbers)


def one_unit(folder: Path, n: int, work: Callable[[int], Awaitable[Json]]) -> list[Unit]:
    """So many items of unit 000 of the journal in a folder."""
    return [Unit("000", items(journal(folder), range(n), work))]


async def answer(number: int) -> Json:
    await asyncio.sleep(0.001 * (number % 3))
    return {"n": number}


@pytest.mark.parametrize("n_in_flight", [1, 8])
def test_fill_writes_one_record_an_item_into_its_unit(tmp_path: Path, n_in_flight: int) -> None:
    closed: list[str] = []
    target = journal(tmp_path)
    units = [
        Unit(
            f"{n:03d}",
            items(target, range(10 * n, min(10 * n + 10, 25)), answer),
            partial(closed.append, f"{n:03d}"),
        )
        for n in range(3)
    ]
    filled = asyncio.run(fill(units, n_in_flight=n_in_flight))
    assert (filled.n_done, filled.n_open) == (25, 0)
    assert target.units() == ["000", "001", "002"]
    assert [len(target.read(unit)) for unit in target.units()] == [10, 10, 5]
    assert sorted(closed) == ["000", "001", "002"]


def test_fill_keeps_at_most_so_many_in_flight_and_reads_items_lazily(tmp_path: Path) -> None:
    running = most = read = 0

    async def work(number: int) -> Json:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert read <= number + 8
        await asyncio.sleep(0.001)
        running -= 1
        return {}

    def source() -> Iterator[Item]:
        nonlocal read
        for item in items(journal(tmp_path), range(60), work):
            read += 1
            yield item

    asyncio.run(fill([Unit("000", source())], n_in_flight=7))
    assert most == 7


def test_unanswered_items_stay_open_with_their_reasons_and_pending_ones_are_counted(tmp_path: Path) -> None:
    async def work(number: int) -> Json:
        if number == 1:
            raise LLMUnavailable("no answer")
        if number == 2:
            raise Pending
        return {}

    opened: list[tuple[str, str]] = []
    filled = asyncio.run(
        fill(
            one_unit(tmp_path, 4, work),
            n_in_flight=2,
            on_open=lambda item, reason: opened.append((item.key, reason)),
        )
    )
    assert (filled.n_done, filled.n_open, filled.n_pending) == (2, 1, 1)
    assert opened == [("k001", "no answer")]
    assert set(journal(tmp_path).read("000")) == {"k000", "k003"}


def test_a_server_that_is_gone_ends_the_call_instead_of_failing_every_item(tmp_path: Path) -> None:
    asked = 0

    async def work(number: int) -> Json:
        nonlocal asked
        asked += 1
        raise LLMUnavailable("connection refused")

    with pytest.raises(LLMUnavailable, match="items in a row got no answer"):
        asyncio.run(fill(one_unit(tmp_path, 10_000, work), n_in_flight=4))
    assert asked < 60


def test_an_error_that_stops_the_run_loses_no_finished_record(tmp_path: Path) -> None:
    async def work(number: int) -> Json:
        if number == 5:
            raise LLMStopped("quota")
        return {}

    with pytest.raises(LLMStopped):
        asyncio.run(fill(one_unit(tmp_path, 100, work), n_in_flight=3))
    done = journal(tmp_path).read("000")
    assert {f"k{number:03d}" for number in range(5)} <= set(done)
    assert len(done) < 12


@pytest.mark.parametrize("error", [LLMStopped("quota"), BudgetReached("used up"), LLMUnavailable("gone")])
def test_an_llm_that_stops_the_run_does_not_cost_the_answers_in_flight(
    tmp_path: Path, error: LLMError
) -> None:
    """The 40 others are being answered; nothing is begun any more, and of the one that says more nothing."""
    begun: list[int] = []

    async def work(number: int) -> Json:
        begun.append(number)
        if number < 30:
            raise error
        await asyncio.sleep(0.2)
        if number == 69:
            raise LLMStopped("said later")
        return {}

    def following(_: Json) -> Iterator[Item]:
        raise AssertionError("nothing follows")

    source = [
        dataclasses.replace(item, then=following) for item in items(journal(tmp_path), range(200), work)
    ]
    with pytest.raises(LLMError, match=str(error)):
        asyncio.run(fill([Unit("000", source)], n_in_flight=70))
    assert begun == list(range(70))
    assert set(journal(tmp_path).read("000")) == {f"k{number:03d}" for number in range(30, 69)}


def test_an_error_of_another_kind_is_waited_for_by_nobody(tmp_path: Path) -> None:
    """A full disk, a fault of ours: also where it comes while others are waited for."""

    async def work(number: int) -> Json:
        if number == 0:
            raise LLMStopped("quota")
        await asyncio.sleep(0.05 if number == 1 else 60)
        raise ZeroDivisionError

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(fill(one_unit(tmp_path, 5, work), n_in_flight=5))
    assert time.monotonic() - began < 10


def test_stopping_finishes_what_is_in_flight_and_begins_nothing_new(tmp_path: Path) -> None:
    begun: list[int] = []

    async def run() -> None:
        stop = asyncio.Event()

        async def work(number: int) -> Json:
            begun.append(number)
            if number == 4:
                stop.set()
            await asyncio.sleep(0.05)
            return {}

        await fill(one_unit(tmp_path, 50, work), n_in_flight=5, stop=stop)

    with pytest.raises(Interrupted):
        asyncio.run(run())
    assert set(journal(tmp_path).read("000")) == {f"k{number:03d}" for number in begun}
    assert len(begun) <= 10


def test_stopping_waits_no_longer_than_its_grace(tmp_path: Path) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        stop_soon = asyncio.get_running_loop().call_later(0.05, stop.set)

        async def work(number: int) -> Json:
            await asyncio.sleep(60)
            return {}

        try:
            await fill(one_unit(tmp_path, 3, work), n_in_flight=5, stop=stop, grace_s=0.1)
        finally:
            stop_soon.cancel()

    began = time.monotonic()
    with pytest.raises(Interrupted):
        asyncio.run(run())
    assert time.monotonic() - began < 10


def test_what_follows_begins_with_the_record_and_its_item_keeps_its_place(tmp_path: Path) -> None:
    """Twelve items, each with two that follow in another journal: never are items of more than three in flight,
    and nothing follows from those that stay open (every fourth)."""
    first, second = journal(tmp_path / "first"), journal(tmp_path / "second")
    in_flight: dict[int, int] = {}
    most = 0

    def source() -> Iterator[Item]:
        for number in range(12):
            then = partial(following, number)
            yield Item(first, f"k{number:03d}", partial(work, number, number % 4 == 3), then)

    def following(number: int, record: Json) -> Iterator[Item]:
        assert first.read("000")[f"k{number:03d}"]["n"] == record["n"] == number
        for mark in "ab":
            yield Item(second, f"k{number:03d}{mark}", partial(work, number))

    async def work(number: int, fails: bool = False) -> Json:
        nonlocal most
        in_flight[number] = in_flight.get(number, 0) + 1
        most = max(most, sum(n > 0 for n in in_flight.values()))
        await asyncio.sleep(0.001 * (number % 3))
        in_flight[number] -= 1
        if fails:
            raise LLMUnavailable("no answer")
        return {"n": number}

    filled = asyncio.run(fill([Unit("000", source())], n_in_flight=3))
    assert most == 3
    assert (filled.n_done, filled.n_open) == (9 + 18, 3)
    done = {number for number in range(12) if number % 4 != 3}
    assert set(first.read("000")) == {f"k{number:03d}" for number in done}
    assert set(second.read("000")) == {f"k{number:03d}{mark}" for number in done for mark in "ab"}


def test_a_server_that_is_gone_is_noticed_while_another_answers(tmp_path: Path) -> None:
    """Every item of the first journal is written, what follows from it in the second never is."""
    first, second = journal(tmp_path / "first"), journal(tmp_path / "second")

    async def fails() -> Json:
        raise LLMUnavailable("connection refused")

    def source() -> Iterator[Item]:
        for item in items(first, range(10_000), answer):
            yield dataclasses.replace(item, then=lambda _, key=item.key: [Item(second, key, fails)])

    with pytest.raises(LLMUnavailable, match=r"\d+ items in a row got no answer") as failure:
        asyncio.run(fill([Unit("000", source())], n_in_flight=4))
    assert 25 <= int(str(failure.value).split(" items")[0].split()[-1]) <= 30
    assert 20 < len(first.read("000")) < 60


def test_so_many_units_are_open_at_once_and_none_before_there_is_room(tmp_path: Path) -> None:
    """Twenty units of one item, of which the first takes as long as all others."""
    target, opened, closed = journal(tmp_path), list[str](), list[str]()
    most = 0

    def source() -> Iterator[Unit]:
        nonlocal most
        for number in range(20):
            opened.append(f"{number:03d}")
            most = max(most, len(opened) - len(closed))
            yield Unit(opened[-1], items(target, [number], work), partial(closed.append, opened[-1]))

    async def work(number: int) -> Json:
        while number == 0 and len(closed) < 19:
            await asyncio.sleep(0.001)
        return {}

    asyncio.run(fill(source(), n_in_flight=50, n_units=4))
    assert most == 4
    assert closed[-1] == "000" and sorted(closed) == opened == target.units()


def test_units_are_closed_also_when_the_call_ends_early(tmp_path: Path) -> None:
    closed: list[str] = []

    async def work(number: int) -> Json:
        raise LLMStopped("quota")

    units = [Unit(name, items(journal(tmp_path), [0], work), partial(closed.append, name)) for name in "ab"]
    with pytest.raises(LLMStopped):
        asyncio.run(fill(units, n_in_flight=2))
    assert sorted(closed) == ["a", "b"]


def test_fill_again_does_only_what_is_missing(tmp_path: Path) -> None:
    target = journal(tmp_path)
    write(target, "000", ["k000", "k002"])
    asked: list[int] = []

    async def work(number: int) -> Json:
        asked.append(number)
        return {}

    done = target.read("000")
    left = [item for item in items(target, range(4), work) if item.key not in done]
    asyncio.run(fill([Unit("000", left)], n_in_flight=2))
    assert sorted(asked) == [1, 3]
    assert len(target.read("000")) == 4


def test_killed_while_writing_leaves_whole_records(tmp_path: Path) -> None:
    """A process writes without pause and is killed; every record but a torn last one is there, in order."""
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from autointerp.journal import Journal, Part
        part = Part(Journal(Path(sys.argv[1]), None), "000")
        n = 0
        while True:
            part.append(f"k{n:07d}", {"text": "x" * 200})
            n += 1
    """)
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        until = time.monotonic() + 30
        while not any(path.stat().st_size > 100_000 for path in tmp_path.glob("*.jsonl")):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    keys = list(journal(tmp_path, None).read("000"))
    assert keys == [f"k{number:07d}" for number in range(len(keys))]
    assert len(keys) > 300
