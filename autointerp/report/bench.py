"""What `autointerp bench` measured, as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from autointerp.bench.browsing import Missing, Times
from autointerp.bench.cache import CacheBench
from autointerp.bench.llm import LLMBenches, Pace
from autointerp.bench.sample import SampleBenches
from autointerp.bench.size import Size
from autointerp.bench.view import ViewBench


def print_sample_bench(console: Console, benches: SampleBenches) -> None:
    found = benches.whole
    title = (
        f"Sampling {found.n_features:,} features of {found.n_tokens:,} tokens, {found.n_firings:,} firings"
    )
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    rows = [
        ("features a second", f"{found.features_a_second:,.0f}", "of CPU time on one core, start included"),
        ("start", f"{found.start_s:.1f} s", "before the first feature, whatever their number"),
        ("wall time", f"{found.wall_s:.1f} s", ""),
        ("peak memory", f"{found.peak_rss / 1e9:.2f} GB", ""),
        ("four times the features", f"{benches.growth:.2f} x", "the time, start not included"),
        ("record", f"{found.record_bytes / 1e3:.1f} kB", "a feature"),
        ("windows", f"{found.store_bytes / 1e3:.1f} kB", "a feature"),
        (
            "read back, shown",
            f"{1 / max(found.shown_s, 1e-9):,.0f}",
            "features a second: what an explainer sees",
        ),
        ("read back, held out", f"{1 / max(found.heldout_s, 1e-9):,.0f}", "the same of what a scorer sees"),
    ]
    if found.ratio is not None and found.slow_s:
        rows.append(
            ("plain Python", f"{found.ratio:,.0f} x", f"slower: {1 / found.slow_s:,.1f} features a second")
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_cache_bench(console: Console, found: CacheBench, size: Size) -> None:
    title = (
        f"Caching {found.n_tokens:,} tokens: {size.width:,} features, k {size.k}, behind layer {size.layer} of a "
        f"{size.n_layers}-layer model of width {size.d_model} ({found.device})"
    )
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    times = [
        ("cached", found.cached, "all that explain does with it"),
        ("bare work", found.bare, "forward to the hook, product, selection; nothing kept"),
        ("the same with torch.topk", found.bare_with_torch_topk, ""),
        ("forward to the hook", found.forward_to_hook, ""),
        ("whole forward", found.forward, "logits included"),
    ]
    for name, value, note in times:
        if value is not None:
            table.add_row(name, f"{value:,.1f} us", note or "a token")
    if found.ratio is not None:
        table.add_row("cached / bare", f"{found.ratio:.3f}", "")
    table.add_row("disk", f"{found.bytes_a_firing:.2f} B", "a firing")
    grown = f"{found.growth:.2f} x that of a quarter of the tokens" if found.growth is not None else ""
    table.add_row("peak memory", f"{found.peak_rss / 1e9:.2f} GB", grown)
    console.print(table)


def print_llm_bench(console: Console, benches: LLMBenches) -> None:
    found = benches.whole
    title = (
        f"Explaining and scoring {found.n_features:,} features, {found.n_in_flight} requests in flight, "
        f"with a server of this machine that answers at once"
    )
    table = Table(title=title, title_justify="left", show_edge=False)
    for name in ("", "requests a second", "CPU us a request"):
        table.add_column(name, justify="right" if name else "left")
    table.add_column("")
    paces: list[tuple[str, Pace | None, str]] = [
        ("the path", found.path, "prompts, client, request journals, trials, metrics, records"),
        ("bare SDK", found.bare, "chat.completions.create, the same bodies, nothing kept"),
        ("bare SDK, untyped", found.bare_raw, "its post, the same bodies, nothing kept"),
        ("the client alone", found.client, "of the path: the same bodies, their replies read"),
        ("the path, nothing kept", found.unkept, "without request journals"),
        ("the path alone", found.alone, "answered in its own process, without a client"),
    ]
    for name, pace, note in paces:
        if pace is not None:
            table.add_row(name, f"{pace.a_second:,.0f}", f"{pace.cpu_us:,.0f}", note)
    for name, ratio in (("path / bare", benches.ratio), ("path / untyped", benches.ratio_raw)):
        if ratio is not None:
            table.add_row(name, f"{ratio:.3f}", "", "")
    console.print(table)
    console.print(
        f"Peak memory {found.peak_rss / 1e6:,.0f} MB; of {benches.quarter.n_features:,} features "
        f"{benches.quarter.peak_rss / 1e6:,.0f} MB ({benches.growth:.2f} x)"
    )


def print_view_bench(console: Console, bench: ViewBench) -> None:
    built, browsed = bench.built, bench.browsed
    kept = (
        "all windows"
        if built.n_windows is None
        else f"{built.n_windows} windows of each split and wrong ones"
    )
    title = f"The explorer of {built.n_features:,} features, {kept}, at most {bench.jobs} processes"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    table.add_row("written", f"{built.wall_s:,.1f} s", "start included")
    table.add_row("CPU time", f"{built.cpu_ms:,.1f} ms", "a feature, of all processes")
    child = f"; its largest process {built.peak_rss_child / 1e9:.2f} GB" if built.peak_rss_child else ""
    table.add_row("peak memory", f"{built.peak_rss / 1e9:.2f} GB", f"of the process that writes{child}")
    table.add_row("folder", f"{built.n_bytes / 1e6:,.1f} MB", f"{built.n_files:,} files")
    if isinstance(browsed, Missing):
        table.add_row("in a browser", "-", browsed.why)
    else:
        table.add_row("usable", f"{browsed.usable:,.0f} ms", "from the start of loading")
        table.add_row("searchable", f"{browsed.searchable:,.0f} ms", "with the texts of all explanations")
        for name, times, what in (
            ("a letter searched", browsed.search, "until painted"),
            ("sorted", browsed.sort, ""),
            ("a feature opened", browsed.open, "what is in sight of it, from a file not read before"),
            ("all of it", browsed.whole, "what is below, too"),
        ):
            table.add_row(name, _milliseconds(times), what)
        table.add_row("heap", f"{browsed.heap / 1e6:,.0f} MB", "of JavaScript")
    console.print(table)


def _milliseconds(times: Times) -> str:
    return f"{times.median:,.0f} ms, worst {times.worst:,.0f}"
