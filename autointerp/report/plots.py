"""Figures of a run as PNGs, 8 inches wide and readable at 800 pixels.

Colours are Okabe and Ito's, which those who are colour-blind can tell apart; lines differ by their dashes too. Equal
figures give equal bytes, as far as one version of matplotlib goes: nothing of the moment is written into a file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autointerp.llm.spending import Spent
from autointerp.report.figures import Charted, Figures, Shown
from autointerp.report.summary import spoken

_WIDTH: Final = 8.0
_DPI: Final = 200
BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
_COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)
_GREY: Final = "#6b6b6b"
_N_BINS: Final = 25
_POINTS_UP_TO: Final = 1_500
"""Of more features, cells are drawn, the darker the more."""
_SETTINGS: Final[Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,  # names are no formulas
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "path.simplify": True,
}


def plots(shown: Shown) -> Iterator[tuple[str, str, bytes]]:
    """(name of the file, what it shows, its PNG). Figures of which nothing is known yet are left out."""
    for figures in shown.dictionaries:
        dictionary = figures.summary.dictionary
        of = f"-{dictionary}" if len(shown.dictionaries) > 1 else ""
        yield f"funnel{of}.png", f"Features of {dictionary}, step by step", _png(_funnel, figures)
        if figures.charted:
            yield f"scores{of}.png", f"Scores of {dictionary}, feature by feature", _png(_histograms, figures)
            yield f"density{of}.png", f"Scores of {dictionary} against density", _png(_densities, figures)
        if any(figures.pairs()):
            yield f"pairs{of}.png", f"Detection against fuzzing, {dictionary}", _png(_pairs, figures)
        if figures.by_decile():
            yield (
                f"deciles{of}.png",
                f"Share right by decile of activation, {dictionary}",
                _png(_deciles, figures),
            )
    if any(one.n_tokens for one in shown.spent.values()):
        yield "spent.png", "Tokens and money, by what asked", _png(_spent, shown.spent)


def _png(draw: Callable[[Any], Any], content: object) -> bytes:
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_SETTINGS}):
        figure = draw(content)
        FigureCanvasAgg(figure)
        out = io.BytesIO()
        # Without the version of matplotlib, which would otherwise stand in the file.
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _grid(n: int, height: float) -> tuple[Any, list[Any]]:
    """A figure of n places, two in a row; each so many inches high."""
    n_columns = min(2, n)
    n_rows = math.ceil(n / n_columns)
    figure = Figure(figsize=(_WIDTH, height * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for unused in axes[n:]:
        unused.set_visible(False)
    return figure, list(axes[:n])


# --- how far --------------------------------------------------------------------------------------------


def _funnel(figures: Figures) -> Any:
    steps = figures.steps
    figure = Figure(figsize=(_WIDTH, 0.55 + 0.33 * len(steps)), layout="constrained")
    axes = figure.subplots()
    colours = {"features": BLUE, "explained": SKY, "scored": GREEN}
    places = range(len(steps))
    axes.barh(places, [step.n for step in steps], color=[colours[step.kind] for step in steps], height=0.72)
    axes.set_yticks(places, [step.name for step in steps])
    axes.invert_yaxis()
    most = max(1, *(step.n for step in steps))
    for place, step in enumerate(steps):
        axes.text(step.n + most * 0.01, place, f"{step.n:,}", va="center", ha="left", fontsize=9)
    axes.set_xlim(0, most * 1.12)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xticks([])
    return figure


# --- scores ---------------------------------------------------------------------------------------------


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: of scores between 0 and 1 these."""
    low, high = min(values), max(values)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def _histograms(figures: Figures) -> Any:
    figure, places = _grid(len(figures.charted), 3.2)
    for axes, one in zip(places, figures.charted, strict=True):
        values = list(one.values.values())
        low, high = _span(values)
        counts, edges = np.histogram(values, bins=_N_BINS, range=(low, high))
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE, alpha=0.55, linewidth=0)
        _lines(axes, one)
        axes.set_xlim(low, high)
        axes.set_ylim(0, counts.max() * 1.05)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_title(one.name)
        axes.set_xlabel(spoken(one.score.headline))
        axes.set_ylabel("features")
        # Below the axes: inside, it would stand on the bars.
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handlelength=2.6, columnspacing=1.2
        )
    return figure


def _lines(axes: Any, one: Charted) -> None:
    """The mean, chance, and each control."""
    if one.score.value is not None:
        axes.axvline(
            one.score.value.value, color="black", linewidth=1.6, label=f"mean {one.score.value.value:.3f}"
        )
    if one.score.chance is not None:
        axes.axvline(
            one.score.chance,
            color=_GREY,
            linewidth=1.2,
            linestyle="--",
            label=f"chance {one.score.chance:.3g}",
        )
    dashes = cycle([":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1))])
    for control, colour in zip(one.beside, cycle(_COLOURS[1:])):
        if control.mean is not None:
            label = f"{control.control} {control.mean.value:.3f}"
            axes.axvline(control.mean.value, color=colour, linewidth=1.6, linestyle=next(dashes), label=label)


def _densities(figures: Figures) -> Any:
    figure, places = _grid(len(figures.charted), 2.75)
    for axes, one in zip(places, figures.charted, strict=True):
        known = [(one.densities[key], value) for key, value in one.values.items() if one.densities[key] > 0]
        axes.set_title(one.name)
        axes.set_xlabel("density: share of tokens on which it fires")
        axes.set_ylabel(spoken(one.score.headline))
        axes.set_ylim(*_span(list(one.values.values())))
        if not known:
            axes.text(0.5, 0.5, "densities are not known", transform=axes.transAxes, ha="center", color=_GREY)
            continue
        axes.set_xscale("log")
        axes.set_xlim(*_powers([x for x, _ in known]))
        axes.xaxis.set_major_formatter(_power)
        _cloud(axes, [x for x, _ in known], [y for _, y in known], log_x=True)
        if one.score.chance is not None:
            axes.axhline(one.score.chance, color=_GREY, linewidth=1.2, linestyle="--")
    return figure


def _powers(values: Sequence[float]) -> tuple[float, float]:
    """From the power of ten below the smallest to that above the largest."""
    low = math.floor(math.log10(min(values)))
    return 10.0**low, 10.0 ** max(math.ceil(math.log10(max(values))), low + 1)


def _power(value: float, _place: int) -> str:
    return f"1e{round(math.log10(value))}"


def _pairs(figures: Figures) -> Any:
    pairs = list(figures.pairs())
    figure, places = _grid(len(pairs), 3.6 if len(pairs) > 1 else 4.2)
    for axes, (first, second) in zip(places, pairs, strict=True):
        keys = [key for key in first.values if key in second.values]
        _cloud(axes, [first.values[key] for key in keys], [second.values[key] for key in keys])
        axes.axline((0.5, 0.5), slope=1, color=_GREY, linewidth=0.8)
        axes.set_xlim(*_span(list(first.values.values())))
        axes.set_ylim(*_span(list(second.values.values())))
        axes.set_aspect("equal")
        axes.set_title(f"{first.score.explainer}: {len(keys):,} features")
        axes.set_xlabel(f"{first.score.scorer}: {spoken(first.score.headline)}")
        axes.set_ylabel(f"{second.score.scorer}: {spoken(second.score.headline)}")
    return figure


def _cloud(axes: Any, x: list[float], y: list[float], *, log_x: bool = False) -> None:
    if len(x) <= _POINTS_UP_TO:
        axes.scatter(x, y, s=13, color=BLUE, alpha=0.55, linewidths=0)
        return
    scale = "log" if log_x else "linear"
    axes.hexbin(x, y, gridsize=48, bins="log", mincnt=1, cmap="Blues", linewidths=0, xscale=scale)


def _deciles(figures: Figures) -> Any:
    """Decile 1 is the strongest, as the explorer counts them."""
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    n = 1 + max(int(band) for one in figures.by_decile() for band in one.score.bands)
    styles = zip(cycle(_COLOURS), cycle("osD^vP"), cycle(["-", "--", "-.", ":"]))
    for one, (colour, marker, dashes) in zip(figures.by_decile(), styles):  # noqa: B905
        bands = sorted((int(band), mean.value) for band, mean in one.score.bands.items())
        places, values = [band + 1 for band, _ in bands], [value for _, value in bands]
        axes.plot(
            places, values, color=colour, marker=marker, linestyle=dashes, markersize=4.5, label=one.name
        )
    axes.set_xticks(range(1, n + 1))
    axes.set_ylim(0, 1)
    axes.grid(axis="y", linewidth=0.4)
    axes.set_xlabel("decile of activation, 1 the strongest")
    axes.set_ylabel("share of active windows right")
    figure.legend(loc="outside right upper", handlelength=3)
    return figure


# --- what it took ---------------------------------------------------------------------------------------


def _spent(spent: dict[str, Spent]) -> Any:
    """Tokens, and dollars where a price is known."""
    names = list(spent)
    is_priced = any(one.cost for one in spent.values())
    figure = Figure(figsize=(_WIDTH, 1.3 + 0.33 * len(names)), layout="constrained")
    axes, *others = figure.subplots(1, 2 if is_priced else 1, squeeze=False, sharey=True)[0]
    kinds = [
        ("in", BLUE, [one.prompt_tokens - one.cached_tokens for one in spent.values()]),
        ("in, cached", SKY, [one.cached_tokens for one in spent.values()]),
        ("out", ORANGE, [one.completion_tokens for one in spent.values()]),
    ]
    left = np.zeros(len(names))
    for name, colour, counts in kinds:
        if any(counts):
            axes.barh(names, counts, left=left, color=colour, height=0.72, label=name)
            left += counts
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_short)
    axes.set_xlabel("tokens")
    for money in others:
        money.barh(names, [one.cost for one in spent.values()], color=GREEN, height=0.72)
        money.set_xlabel("US dollars")
    for one in (axes, *others):
        one.tick_params(axis="y", length=0)
        one.xaxis.get_major_locator().set_params(nbins=5)
    figure.legend(loc="outside upper right", ncols=3)
    return figure


def _short(value: float, _place: int) -> str:
    """12,300,000 -> 12.3M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:g}"
