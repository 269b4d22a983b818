"""What the sample stage knows of a feature, on a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from autointerp.activations.histogram import EDGES
from autointerp.activations.random_rates import RandomRate
from autointerp.activations.statistics import POSITION_EDGES
from autointerp.prompting import inert
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Assumed, Sample


def print_sample(
    console: Console, sample: Sample, vocabulary: Vocabulary, random: RandomRate | None = None
) -> None:
    """What the sample stage knows of a feature: how often, how strongly, on which tokens, where in a row."""
    if not sample.n_tokens:  # of a run made from somebody's files
        console.print(
            f"[bold]{escape(sample.feature)}[/]  {sample.n_windows:,} active windows; "
            "how often it fires is not known",
            highlight=False,
        )
        if sample.assumed is not None:
            console.print(f"  {_assumed(sample.assumed)}", highlight=False, soft_wrap=True)
        return
    of_random = f", {random.rate:.3%} of random tokens" if random else ""
    graded = ", against weak ones" if sample.contrast == "graded" else ""
    console.print(
        f"[bold]{escape(sample.feature)}[/]  {sample.status}: fires on {sample.n_fired:,} of "
        f"{sample.n_tokens:,} tokens ({sample.density:.3%}){of_random} in {sample.n_documents:,} documents; "
        f"{sample.n_windows:,} active windows{graded}; maximum {sample.maximum:.3g}, mean {sample.mean:.3g}",
        highlight=False,
    )
    if sample.assumed is not None:
        console.print(f"  {_assumed(sample.assumed)}", highlight=False, soft_wrap=True)
    if not sample.n_fired:
        return
    tokens = [
        f"{inert(repr(vocabulary.pieces([token])[0]))} {n / sample.n_fired:.0%}"
        for token, n in sample.top_tokens
    ]
    console.print(Text("  most on " + ", ".join(tokens)), soft_wrap=True, highlight=False)
    ranges = zip(_RANGES, sample.rates, strict=True)
    if rates := [f"{name} {rate:.2%}" for name, rate in ranges if rate is not None]:
        console.print(Text("  by position " + ", ".join(rates)), soft_wrap=True, highlight=False)
    peak = max(sample.histogram.values(), default=1)
    bars = "".join(_BARS[-(-sample.histogram.get(str(n), 0) * 8 // peak)] for n in _shown_bins(sample))
    console.print(Text(f"  activations {_bounds(sample)} {bars}"), soft_wrap=True, highlight=False)


def _assumed(silence: Assumed) -> str:
    """Of windows that somebody published."""
    said = "is not said" if silence.p_silent is None else f"is {silence.p_silent:.3f}"
    return (
        f"windows as published; of the silent ones {silence.n_known} are known to be, {silence.n_assumed} are other "
        f"features' and only assumed to be: the probability that a random window is silent {said}"
    )


_RANGES: Final = tuple(
    f"{low}-{high - 1}" if high else f"{low}+"
    for low, high in zip((0, *POSITION_EDGES), (*POSITION_EDGES, 0), strict=True)
)
_BARS: Final = " ▁▂▃▄▅▆▇█"


def _shown_bins(sample: Sample) -> range:
    bins = [int(name) for name in sample.histogram]
    return range(min(bins), max(bins) + 1)


def _bounds(sample: Sample) -> str:
    """Where the histogram begins and ends."""
    bins = _shown_bins(sample)
    low = 0.0 if bins[0] == 0 else float(EDGES[bins[0] - 1])
    return f"from {low:.2g} to {sample.maximum:.2g}"
