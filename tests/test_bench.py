"""`autointerp bench` at a tiny size: it ends, and what it reports is what was done."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from autointerp.bench.browsing import Missing, browse
from autointerp.bench.cache import CacheBench
from autointerp.bench.llm import LLMBenches
from autointerp.bench.made_up_cache import CacheSize, make_cache, open_cache
from autointerp.bench.made_up_explained import make_explained_run
from autointerp.bench.sample import SampleBenches
from autointerp.bench.view import ViewBench
from autointerp.cli import app
from autointerp.journal import Journal
from autointerp.report import bench as report
from autointerp.report.summary import summarise
from autointerp.run import Run
from autointerp.sampling.sample import Sampler
from autointerp.sampling.settings import SamplingSettings
from autointerp.stages.sample import load_vocabulary, save_samples, unit_windows
from autointerp.types import FeatureId


def ran(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Any, str]:
    """The figures, and how they are printed."""
    printer = f"print_{arguments[0]}_bench"
    printed: Callable[..., None] = getattr(report, printer)
    found: list[Any] = []

    def noting(console: Any, figures: Any, *more: Any) -> None:
        found.append(figures)
        printed(console, figures, *more)

    monkeypatch.setattr(report, printer, noting)
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert done.exit_code == 0, done.output
    return found[0], done.output


def test_bench_sample_reports_what_sampling_the_same_cache_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Counts and bytes are those of the same features sampled here; rates follow from the times."""
    figures, printed = ran(monkeypatch, "sample", "--features", "60", "--tokens", "60000", "--no-compare")
    assert isinstance(figures, SampleBenches)
    whole = figures.whole
    (tmp_path / "cache").mkdir()
    make_cache(tmp_path / "cache", CacheSize(n_tokens=60_000, n_features=60))
    cache = open_cache(tmp_path / "cache")
    journal = Journal(tmp_path / "samples", {"bench": "sample"})
    sampler = Sampler(cache.rows, cache.firings, SamplingSettings(), seed=0, first=1)
    save_samples(journal, sampler.sample([FeatureId("bench", index) for index in range(60)]))
    assert (whole.n_features, figures.quarter.n_features) == (60, 15)
    assert whole.n_firings == cache.firings.n_kept() == figures.quarter.n_firings
    assert 0.95 * 60_000 < whole.n_tokens <= 60_000
    assert 1.5 * whole.n_tokens < whole.n_firings <= 2 * whole.n_tokens
    (records,) = journal.folder.glob("*.jsonl")
    (store,) = journal.folder.glob("*.parquet")
    assert whole.record_bytes == records.stat().st_size / 60
    assert whole.store_bytes == store.stat().st_size / 60
    assert 500 < whole.record_bytes < 8_000 and 1_000 < whole.store_bytes < 25_000
    assert min(whole.sample_s, whole.wall_s, whole.shown_s, whole.heldout_s, figures.quarter.sample_s) > 0
    assert figures.growth == whole.sample_s / figures.quarter.sample_s
    assert whole.features_a_second == pytest.approx(60 / (whole.start_s + whole.sample_s))
    assert 20e6 < whole.peak_rss < 2e9
    assert whole.slow_s is None and "plain Python" not in printed
    assert f"{whole.store_bytes / 1e3:.1f} kB" in printed and f"{whole.n_firings:,} firings" in printed


def test_bench_sample_compares_with_plain_python_also_where_nothing_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four features, of which each fires on half of all tokens: no silent window is there to be found."""
    figures, printed = ran(monkeypatch, "sample", "--features", "4", "--tokens", "4000")
    assert figures.whole.slow_s > 0
    assert figures.whole.ratio == pytest.approx(figures.whole.slow_s * 4 / figures.whole.sample_s)
    assert "plain Python" in printed


def test_bench_llm_reports_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature is explained by one request and judged by 10 of its 100 windows each: 10 and 10 prompts, and 4
    for up to 40 windows that are hard; fuzzing may ask one less, for what no mark is wrong on is left out. The bare
    SDK sends as many as the path."""
    figures, printed = ran(monkeypatch, "llm", "--features", "16", "--in-flight", "8")
    assert isinstance(figures, LLMBenches)
    whole, quarter = figures.whole, figures.quarter
    assert (whole.n_features, quarter.n_features, whole.n_in_flight) == (16, 4, 8)
    assert 4 * 20 <= quarter.path.n_requests <= 4 * 25
    assert whole.bare is not None and whole.bare_raw is not None and whole.client is not None
    assert whole.unkept is not None and whole.alone is not None
    assert 8 * 20 <= whole.path.n_requests <= 8 * 25  # in turn with the others: half of them
    in_turn = (whole.bare, whole.bare_raw, whole.client)
    assert {pace.n_requests for pace in in_turn} == {whole.path.n_requests}
    assert whole.alone.n_requests == whole.unkept.n_requests <= 2 * 25
    for pace in (whole.path, *in_turn, whole.unkept, whole.alone, quarter.path):
        assert 0 < pace.cpu_s < 60 and 0 < pace.wall_s < 60
        assert pace.a_second == pytest.approx(pace.n_requests / pace.wall_s)
        assert pace.cpu_us == pytest.approx(1e6 * pace.cpu_s / pace.n_requests)
    assert figures.ratio == pytest.approx(whole.path.a_second / whole.bare.a_second)
    assert figures.ratio is not None and f"{figures.ratio:.3f}" in printed
    assert f"{whole.peak_rss / 1e6:,.0f} MB" in printed and "untyped" in printed
    report.print_llm_bench(console := Console(record=True), LLMBenches(quarter, quarter))
    assert quarter.bare is None and "SDK" not in (printed := console.export_text())
    assert "(1.00 x)" in printed


def test_peak_memory_is_that_of_the_program_not_of_who_started_it() -> None:
    """200 MB here are not the child's, whose own 100 MB are."""
    held = bytearray(b"x" * 200_000_000)
    program = (
        "from autointerp.bench.memory import peak_rss; a = peak_rss(); b = b'x' * 10**8; print(a, peak_rss())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    before, behind = map(int, done.stdout.split())
    assert 1e6 < before < 100e6 and 90e6 < behind - before < 120e6 and len(held) == 200_000_000


def test_bench_view_builds_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 features in a shard of 16 and one of 4, with index, texts and the page itself. Whether there is a browser
    or not, it is told."""
    found, printed = ran(monkeypatch, "view", "--features", "20", "--jobs", "1")
    assert isinstance(found, ViewBench)
    built = found.built
    assert (built.n_features, built.n_files, built.n_windows) == (20, 5, None)
    assert 20 * 5_000 < built.n_bytes < 20 * 50_000 + 200_000
    assert 0 < built.wall_s < 120 and built.cpu_ms == pytest.approx(1e3 * built.cpu_s / 20)
    assert 20e6 < built.peak_rss < 2e9 and built.peak_rss_child == 0
    assert f"{built.cpu_ms:,.1f} ms" in printed and "5 files" in printed
    if isinstance(found.browsed, Missing):
        assert found.browsed.why in printed
    else:
        assert 0 < found.browsed.usable <= found.browsed.searchable
        assert f"worst {found.browsed.open.worst:,.0f}" in printed
        assert 0 < found.browsed.open.median < found.browsed.whole.median


def test_a_page_that_nobody_can_look_at_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = browse(tmp_path / "index.html")
    assert found == Missing("no browser: none of chromium, chromium-browser, google-chrome is installed")


def test_the_made_up_run_repeats_its_features_under_other_names(tmp_path: Path) -> None:
    """258: a unit, and two features of the next, with the windows and trials of the first two."""
    run = make_explained_run(tmp_path / "run", 258)
    vocabulary = load_vocabulary(run)
    few, more = (run.existing("sample", "bench").read(unit) for unit in ("000000000", "000000256"))
    assert (len(few), list(more)) == (256, ["bench/256", "bench/257"])
    for number in range(2):
        old, new = f"bench/{number}", f"bench/{256 + number}"
        assert more[new] | {"key": old} == few[old]
        stores = [
            unit_windows(run, "bench", f"{256 * at:09d}", [key], vocabulary)[key]
            for at, key in enumerate((old, new))
        ]
        assert stores[0].heldout(old) == stores[1].heldout(new)
        explained = [run.existing("explain", "bench", "plain").read(f"{256 * at:09d}") for at in range(2)]
        assert explained[0][old]["text"] != explained[1][new]["text"]
    summary = summarise(Run.open(run.path), "bench")
    assert (summary.n_asked, summary.n_sampled) == (258, 258)


CACHE = ("cache", "--tokens", "2000", "--width", "256", "--k", "8", "--d-model", "64", "--layers", "2")


def test_bench_cache_reports_consistent_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """7 bytes a firing, 8 a feature and a header: 2,000 tokens of 8 features make no more than 8 bytes."""
    found, printed = ran(monkeypatch, *CACHE)
    assert isinstance(found, CacheBench)
    assert 2_000 <= found.n_tokens < 2_100  # a BOS a row
    assert 7 < found.bytes_a_firing < 8
    times = (found.cached, found.bare, found.bare_with_torch_topk, found.forward, found.forward_to_hook)
    assert all(value is not None and 0 < value < math.inf for value in times)
    assert found.bare is not None
    assert found.ratio == pytest.approx(found.cached / found.bare)
    assert f"{found.ratio:.3f}" in printed and f"{found.bytes_a_firing:.2f} B" in printed
    assert f"Caching {found.n_tokens:,} tokens: 256 features, k 8" in printed
    assert found.growth is None and "a quarter" not in printed
    alone, printed = ran(monkeypatch, *CACHE, "--no-compare")
    assert alone == dataclasses.replace(
        found,
        cached=alone.cached,
        peak_rss=alone.peak_rss,
        peak_rss_quarter=alone.peak_rss_quarter,
        bare=None,
        bare_with_torch_topk=None,
        forward=None,
        forward_to_hook=None,
    )
    assert "bare work" not in printed and "whole forward" not in printed
    assert alone.peak_rss_quarter is not None and 20e6 < alone.peak_rss_quarter < 2e9
    assert f"{alone.peak_rss / alone.peak_rss_quarter:.2f} x that of a quarter of the tokens" in printed
