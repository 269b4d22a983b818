"""A run on a terminal: the summary after a run, one feature in full, progress while it works."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from autointerp.metrics import MeanOver
from autointerp.prompting import inert, marked
from autointerp.report.summary import MEANINGS, Summary
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Directions, Interval, Json, Metrics, Window, WindowSet

_PLAIN_EVERY_S: Final = 30.0


@dataclass(slots=True)
class _Stage:
    """One that is under way."""

    name: str
    unit: str
    total: int
    done: int
    before: int
    began: float
    bar: Any = None
    """Where there are bars."""

    @property
    def rate(self) -> float:
        """Units a second."""
        return (self.done - self.before) / max(time.monotonic() - self.began, 1e-9)


class TerminalProgress:
    """A bar a stage on a terminal; elsewhere one plain line a stage, and one every 30 s."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._stages: dict[str, _Stage] = {}
        self._said = 0.0

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        now = self._said = time.monotonic()
        begun = self._stages[stage] = _Stage(stage, unit, total, done, done, now)
        if self._console.is_terminal:
            if self._bars is None:
                self._bars = Bars(
                    TextColumn("[progress.description]{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[unit]}"),
                    TextColumn("{task.fields[rate]}"),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                    console=self._console,
                    transient=True,
                )
                self._bars.start()
            begun.bar = self._bars.add_task(stage, total=total, completed=done, unit=unit, rate="")
        elif done:
            self.note(f"{stage}: {done:,} of {total:,} {unit} are there already")

    def advance(self, n: int = 1, stage: str = "") -> None:
        moved = self._stages[stage or next(reversed(self._stages))]
        moved.done += n
        if self._bars is not None:
            self._bars.update(moved.bar, completed=moved.done, rate=f"{moved.rate:,.0f}/s")
        elif time.monotonic() - self._said > _PLAIN_EVERY_S:
            self._said = time.monotonic()
            for one in self._stages.values():
                left = max(one.total - one.done, 0) / max(one.rate, 1e-9)
                self.note(
                    f"{one.name}: {one.done:,} of {one.total:,} {one.unit}, {one.rate:,.1f}/s, "
                    f"about {left:,.0f} s left"
                )

    def note(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True, highlight=False)

    def end(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        stages, self._stages = self._stages, {}
        for one in stages.values():
            if n_new := one.done - one.before:
                seconds = time.monotonic() - one.began
                self.note(f"{one.name}: {n_new:,} {one.unit} in {seconds:.1f} s")


# --- the summary ---------------------------------------------------------------------------------------


def print_summary(console: Console, summary: Summary, seconds: dict[str, float]) -> None:
    """The funnel with reasons, the scores with intervals, the time."""
    console.print(_funnel(summary))
    if summary.scores and any(score.n_scored for score in summary.scores):
        console.print(_scores(summary))
        if any(score.strata for score in summary.scores):
            console.print(_hard(summary))
        if n_graded := max(score.n_graded for score in summary.scores):
            console.print(
                f"{n_graded:,} of the scored features fire nearly everywhere: for them windows of the top "
                "decile stand against those of the lower half."
            )
    if seconds:
        spent = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
        console.print(f"Time: {spent} (all: {sum(seconds.values()):.1f} s)", highlight=False)


def _funnel(summary: Summary) -> Table:
    table = Table(title=f"Features of {summary.dictionary}", title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("features", justify="right")
    table.add_column("not going on")
    statuses = summary.by_status
    unsampled = summary.n_asked - summary.n_sampled
    table.add_row("asked", f"{summary.n_asked:,}", f"{unsampled:,} not sampled yet" if unsampled else "")
    table.add_row("alive", f"{summary.n_alive:,}", _ends({"dead": statuses.get("dead", 0)}))
    short = {status: statuses.get(status, 0) for status in ("too_few", "dense")}
    table.add_row("enough windows", f"{summary.n_explainable:,}", _ends(short))
    if small := statuses.get("small", 0):
        table.add_row("  of these few windows", f"{small:,}", "smaller test sets, wider intervals")
    for explainer in summary.explainers:
        ends = _ends(explainer.ends, explainer.n_open)
        table.add_row(f"explained · {explainer.explainer}", f"{explainer.n_explained:,}", ends)
    n_explained = {explainer.explainer: explainer.n_explained for explainer in summary.explainers}
    for score in summary.scores:
        # What needs no explanation is scored of every feature with enough windows.
        n_open = (
            n_explained.get(score.explainer, summary.n_explainable)
            - score.n_scored
            - sum(score.ends.values())
        )
        name = f"scored · {score.explainer} · {score.scorer}"
        table.add_row(name, f"{score.n_scored:,}", _ends(score.ends, n_open))
    return table


def _ends(ends: dict[str, int], n_open: int = 0) -> str:
    parts = [f"{n:,} {MEANINGS.get(status, status)}" for status, n in ends.items() if n]
    return "; ".join([*parts, f"{n_open:,} open"] if n_open else parts)


def _scores(summary: Summary) -> Table:
    table = Table(
        title="Scores (mean over features, 95% interval; 0.5 is chance)",
        title_justify="left",
        show_edge=False,
    )
    for column in ("explainer", "scorer"):
        table.add_column(column)
    for column in ("features", "balanced accuracy", "F1", "trials", "unreadable"):
        table.add_column(column, justify="right")
    for score in summary.scores:
        table.add_row(
            score.explainer,
            score.scorer,
            f"{score.n_scored:,}",
            _mean(score.values.get(score.headline)),
            _mean(score.values.get("f1")),
            f"{score.n_trials:,}",
            f"{score.n_unreadable:,}",
        )
    return table


def _hard(summary: Summary) -> Table:
    table = Table(
        title="Windows chosen to be hard (share called active; they count in no score above)",
        title_justify="left",
        show_edge=False,
    )
    names = sorted({name for score in summary.scores for name in score.strata})
    for column in ("explainer", "scorer"):
        table.add_column(column)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for score in summary.scores:
        if score.strata:
            table.add_row(score.explainer, score.scorer, *(_mean(score.strata.get(name)) for name in names))
    return table


def _mean(mean: MeanOver | None) -> str:
    if mean is None:
        return "–"
    if mean.low is None or mean.high is None:
        return f"{mean.value:.3f}"
    return f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]".replace("[", r"\[")


# --- one feature ---------------------------------------------------------------------------------------


def print_directions(
    console: Console, dictionary: str, directions: Directions, vocabulary: Vocabulary
) -> None:
    """What the weights alone say. Tokens stand in quotes, so that their spaces are seen."""
    for title, effects in (("Promotes", directions.promoted), ("Suppresses", directions.suppressed)):
        if effects is not None:
            tokens = zip(effects.ids, effects.effects, strict=True)
            said = [f"{_quoted(vocabulary.pieces([token])[0])} {effect:+.3g}" for token, effect in tokens]
            _print_known(console, title, "token, effect on its logit", said)
    nearest = zip(directions.neighbours, directions.similarity, strict=True)
    said = [f"{dictionary}/{index} {similarity:.2f}" for index, similarity in nearest]
    _print_known(console, "Nearest", "feature, cosine of decoder rows", said)


def _print_known(console: Console, title: str, legend: str, said: list[str]) -> None:
    line = Text(f"{title:11}", style="bold")
    line.append(", ".join(said) or "none", style="not bold")
    console.print(line.append(f"  ({legend})", style="not bold dim"), soft_wrap=True)


def _quoted(text: str) -> str:
    return f"'{inert(text).replace(chr(9), '⇥')}'"


def print_explanation(console: Console, explanation: Json) -> None:
    text = explanation["text"] or f"({explanation['status']}: {explanation['reason']})"
    console.print(f"\n[bold]{escape(explanation['explainer'])}[/] ({escape(explanation['llm'])})")
    console.print(Text(inert(text)), soft_wrap=True)


def print_windows(console: Console, title: str, windows: WindowSet, maximum: float) -> None:
    legend = "band (0: strongest decile of its windows), largest activation, text"
    console.print(f"\n[bold]{title}[/]  [dim]{legend}[/]", highlight=False)
    for window in sorted(windows.active, key=lambda w: -w.maximum):
        console.print(_shaded(console, window, maximum), soft_wrap=True)
    for window in windows.silent:
        console.print(_shaded(console, window, maximum), soft_wrap=True)


def _shaded(console: Console, window: Window, maximum: float) -> Text:
    """Tokens shaded by activation; where there are no colours, those that fire stand in «»."""
    line = Text(f"{_kind(window):10} {window.maximum:8.3g}  ", style="dim")
    if not console.is_terminal:
        fires = (place for place, value in enumerate(window.activations) if value > 0)
        return line.append(marked(window.texts, fires), style="not dim")
    for text, value in zip(window.texts, window.activations, strict=True):
        line.append(inert(text), style=_style(value / maximum if maximum else 0.0))
    return line


def _kind(window: Window) -> str:
    if window.stratum is None:
        return f"band {window.band}"
    return {"random": "silent", "graded": "weak"}.get(window.stratum, window.stratum.replace("_", " "))


def _style(share: float) -> str:
    """Black on a green that deepens with the activation; silent tokens plain."""
    if share <= 0:
        return "not dim"
    level = int(220 - 150 * min(share, 1.0))
    return f"black on rgb({level},255,{level})"


def _ends_of(value: Interval) -> str:
    return f"{value.value:.3f} \\[{value.low:.3f}, {value.high:.3f}]"


def print_trials(console: Console, record: Json, heldout: WindowSet, maximum: float) -> None:
    """Every trial of a score, the wrong ones marked."""
    windows = [*heldout.active, *heldout.silent]
    metrics = Metrics.of(record["metrics"]) if record["metrics"] else None
    said = (
        f"{metrics.headline.replace('_', ' ')} {_ends_of(metrics.value)}"
        if metrics is not None and metrics.value is not None
        else f"{record['status']}: {record['reason']}"
    )
    console.print(
        f"\n[bold]{escape(record['explainer'])} · {escape(record['scorer'])}[/]  {said}", highlight=False
    )
    for name, stratum in (metrics.groups.get("stratum", {}) if metrics else {}).items():
        shares = _ends_of(stratum.value) if stratum.value else "unreadable"
        console.print(f"  called active of {stratum.n} {name} windows: {shares}", highlight=False)
    trials = record["trials"]
    columns = (trials["window"], trials["truth"], trials["answer"], trials["marks"])
    for at, truth, answer, marks in zip(*columns, strict=True):
        verdict = "unreadable" if answer is None else ("right" if answer == truth else "WRONG")
        line = Text(
            f"{verdict:10} truth {'yes' if truth else 'no ':3} ", style="" if verdict == "right" else "red"
        )
        if marks:
            line.append(f"{_kind(windows[at]):10} judge saw  ", style="dim")
            line.append(marked(windows[at].texts, marks), style="not dim")
        else:
            line.append_text(_shaded(console, windows[at], maximum))
        console.print(line, soft_wrap=True)
