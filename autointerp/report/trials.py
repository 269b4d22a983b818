"""What was asked about one feature of a run and what was answered: the numbers of a score and its trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from autointerp.asking import Asking
from autointerp.prompting import inert, marked
from autointerp.report.panel import CONTROL_NAMES
from autointerp.report.summary import spoken
from autointerp.report.windows import kind, shaded
from autointerp.results import Interval, Metrics
from autointerp.scorers.intruder import Intruder
from autointerp.splits import Heldout
from autointerp.trials import Choices, InBlocks, Ranked, Trials
from autointerp.types import Json


def _ends_of(value: Interval) -> str:
    return f"{value.value:.3f} \\[{value.low:.3f}, {value.high:.3f}]"


_EACH_OF: Final = {"band": "by decile, the strongest first", "offset": "by place of its strongest token"}


def _numbers(metrics: Metrics) -> Iterator[str]:
    """The headline's bounds where something is unreadable; the other numbers; those of groups of windows."""
    if metrics.n_unreadable and metrics.bounds is not None:
        low, high = metrics.bounds
        yield (
            f"  {metrics.n_unreadable} of {metrics.n} answers unreadable ({', '.join(metrics.flags) or 'few'}): "
            f"between {low:.3f} and {high:.3f} whatever they were"
        )
    if metrics.p_value is not None:
        yield (
            f"  p {metrics.p_value:.2g} of chance, of this feature alone (p_adjusted of `run.scores()`: among all, "
            f"of which a twentieth would be below 0.05 by luck)"
        )
    for name, value in metrics.values.items():
        if value is not None and name != metrics.headline:
            yield f"  {spoken(name)} {_ends_of(value)}"
    against = "auroc against" if metrics.headline == "auroc" else "called active of"
    for name, stratum in metrics.groups.get("stratum", {}).items():
        said = _ends_of(stratum.value) if stratum.value else "unreadable"
        yield f"  {against} {stratum.n} {name} windows: {said}"
    for by, words in _EACH_OF.items():
        if group := metrics.groups.get(by):
            row = [
                f"{name}: {one.value.value:.2f}" if one.value else f"{name}: –" for name, one in group.items()
            ]
            yield f"  {words}: {', '.join(row)} (few windows each: wide)"


@dataclass(frozen=True, slots=True)
class Beside:
    """What is known of a feature beside the record of its score."""

    heldout: Heldout
    maximum: float
    """Of the feature's activations."""
    scorer: object | None
    """As the recipe has it: it made the trials, and knows what they were about. None where its code is not here."""
    asking: Asking
    """With which it draws what it asks about."""


def print_trials(console: Console, record: Json, beside: Beside) -> None:
    """Every trial of a score, the wrong ones marked."""
    metrics = Metrics.of(record["metrics"]) if record["metrics"] else None
    whose = f"{escape(record['explainer'])} · {escape(record['scorer'])}"
    console.print(f"\n[bold]{whose}[/]  {_headline(record)}", highlight=False)
    if metrics is not None:
        for line in _numbers(metrics):
            console.print(line, highlight=False)
    kind_of = record["trials"]["kind"]
    printed = {Trials.kind: _judged, InBlocks.kind: _judged, Ranked.kind: _ranked, Choices.kind: _chosen}
    if kind_of in printed:
        for line in printed[kind_of](console, record["trials"], beside):
            console.print(line, soft_wrap=True)


def print_controls(console: Console, records: Sequence[Json]) -> None:
    """What the same windows score with something else in the place of the explanation, a line each."""
    if records:
        console.print(
            "\n[bold]Controls[/]  [dim]the same windows, with this for an explanation[/]", highlight=False
        )
    for record in records:
        lent = record["lender"] is not None
        given = f"that of {record['lender']}" if lent else f'"{inert(record.get("text") or "")}"'
        whose = f"{CONTROL_NAMES[record['control']]}{' by ' + record['explainer'] if lent else ''}"
        line = f"{escape(whose)} · {escape(record['scorer'])}  {_headline(record)}  {escape(given)}"
        console.print(line, highlight=False, soft_wrap=True)


def _headline(record: Json) -> str:
    metrics = Metrics.of(record["metrics"]) if record["metrics"] else None
    if metrics is None or metrics.value is None:
        return f"{record['status']}: {escape(str(record['reason']))}"
    return f"{metrics.headline.replace('_', ' ')} {_ends_of(metrics.value)}"


def _judged(console: Console, trials: Json, beside: Beside) -> Iterator[Text]:
    windows = beside.heldout.active + beside.heldout.silent
    columns = (trials["window"], trials["truth"], trials["answer"], trials["marks"])
    for at, truth, answer, marks in zip(*columns, strict=True):
        verdict = _verdict(None if answer is None else answer == truth)
        line = Text(f"{verdict:10} truth {'yes' if truth else 'no ':3} ", style=_STYLES[verdict])
        if marks:
            line.append(f"{kind(windows[at]):10} judge saw  ", style="dim")
            line.append(marked(windows[at].texts, marks), style="not dim")
        else:
            line.append_text(shaded(console, windows[at], beside.maximum))
        yield line


_STYLES: Final = {"right": "", "WRONG": "red", "unreadable": "red"}


def _verdict(is_right: bool | None) -> str:
    return "unreadable" if is_right is None else ("right" if is_right else "WRONG")


def _ranked(console: Console, trials: Json, beside: Beside) -> Iterator[Text]:
    """The most alike first: the active windows should stand before the silent ones."""
    windows = beside.heldout.active + beside.heldout.silent
    columns = zip(trials["window"], trials["truth"], trials["value"], strict=True)
    for at, truth, value in sorted(columns, key=lambda one: (one[2] is None, -(one[2] or 0.0), one[0])):
        said = "no number" if value is None else f"{value:.3f}"
        line = Text(f"likeness {said:>9}  truth {'yes' if truth else 'no ':3} ")
        yield line.append_text(shaded(console, windows[at], beside.maximum))


def _chosen(_: Console, trials: Json, beside: Beside) -> Iterator[Text]:
    """Each line-up with its windows as the judge saw them, in an order of their own, the one that doesn't belong
    first; of line-ups that can't be drawn again (another version drew them) what was answered."""
    lineups = (
        beside.scorer.lineups(beside.heldout, beside.asking) if isinstance(beside.scorer, Intruder) else []
    )
    drawn = [[view.window.document[:8] for view in lineup.views] for lineup in lineups]
    columns = (trials["right"], trials["chosen"], trials["band"], trials["documents"])
    for number, (right, chosen, band, documents) in enumerate(zip(*columns, strict=True)):
        verdict = _verdict(None if chosen is None else chosen == right)
        picked = "" if chosen is None else f": picked {chosen + 1}, the intruder is {right + 1}"
        yield Text(f"{verdict:10} line-up {number + 1}, band {band}{picked}", style=_STYLES[verdict])
        if number >= len(drawn) or drawn[number] != documents:
            continue
        for at, view in enumerate(lineups[number].views):
            said = "intruder" if at == right else ""
            line = Text(f"  {at + 1} {said:9}{'picked' if at == chosen else '':7} judge saw  ", style="dim")
            yield line.append(marked(view.window.texts, view.marks), style="not dim")
