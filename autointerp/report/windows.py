"""One feature of a run: what its weights say, what was said of it, its windows and trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from autointerp.prompting import inert, marked
from autointerp.report.panel import CONTROL_NAMES
from autointerp.subject.vocabulary import Vocabulary
from autointerp.trials import Trials
from autointerp.types import Directions, Interval, Json, Metrics, Window, WindowSet


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


_EACH_OF: Final = {"band": "by decile, the strongest first", "offset": "by place of its strongest token"}


def _numbers(metrics: Metrics) -> Iterator[str]:
    """The headline's bounds where something is unreadable; the other numbers; those of groups of windows."""
    if metrics.n_unreadable and metrics.bounds is not None:
        low, high = metrics.bounds
        yield (
            f"  {metrics.n_unreadable} of {metrics.n} answers unreadable ({', '.join(metrics.flags) or 'few'}): "
            f"between {low:.3f} and {high:.3f} whatever they were"
        )
    for name, value in metrics.values.items():
        if value is not None and name != metrics.headline:
            yield f"  {name.replace('_', ' ')} {_ends_of(value)}"
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


def print_trials(console: Console, record: Json, heldout: WindowSet, maximum: float) -> None:
    """Every trial of a score, the wrong ones marked."""
    windows = [*heldout.active, *heldout.silent]
    metrics = Metrics.of(record["metrics"]) if record["metrics"] else None
    whose = f"{escape(record['explainer'])} · {escape(record['scorer'])}"
    console.print(f"\n[bold]{whose}[/]  {_headline(record)}", highlight=False)
    if metrics is not None:
        for line in _numbers(metrics):
            console.print(line, highlight=False)
    trials = record["trials"]
    if trials["kind"] != Trials.kind:
        return
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
