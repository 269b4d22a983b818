"""One feature of a run: what its weights say, what was said of it, its windows."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from autointerp.prompting import inert, marked
from autointerp.splits import WindowSet
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Directions, Json, Window


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
        console.print(shaded(console, window, maximum), soft_wrap=True)
    for window in windows.silent:
        console.print(shaded(console, window, maximum), soft_wrap=True)


def shaded(console: Console, window: Window, maximum: float) -> Text:
    """Tokens shaded by activation; where there are no colours, those that fire stand in «»."""
    line = Text(f"{kind(window):10} {window.maximum:8.3g}  ", style="dim")
    if not console.is_terminal:
        fires = (place for place, value in enumerate(window.activations) if value > 0)
        return line.append(marked(window.texts, fires), style="not dim")
    for text, value in zip(window.texts, window.activations, strict=True):
        line.append(inert(text), style=_style(value / maximum if maximum else 0.0))
    return line


def kind(window: Window) -> str:
    if window.stratum is None:
        return f"band {window.band}"
    return {"random": "silent", "graded": "weak"}.get(window.stratum, window.stratum.replace("_", " "))


def _style(share: float) -> str:
    """Black on a green that deepens with the activation; silent tokens plain."""
    if share <= 0:
        return "not dim"
    level = int(220 - 150 * min(share, 1.0))
    return f"black on rgb({level},255,{level})"
