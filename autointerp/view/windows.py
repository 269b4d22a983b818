"""Windows and trials of one feature, as the page takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final, cast

from autointerp.trials import NO_COLUMNS, InBlocks, Predictions, Ranked, Responses, Trials, to_4_digits
from autointerp.types import Json, Window
from autointerp.view.packed import LONGEST, cut

_UNUSED: Final = frozenset({"document", "documents", "length", "offset", "look", *NO_COLUMNS})
"""Columns of trials that the page has from the windows, or has no use for. So is `maximum`, but of responses."""

MORE: Final = 2
"""What readers look for are wrong answers. Of the demo's 3,067, 96 are left without their text by 24 windows and 48
more (562 by 24 more, 2,147 by none)."""


def chosen(cells: Sequence[str | int | None], most: int | None, first: Sequence[int] = ()) -> list[int]:
    """Places of at most so many windows, ascending: one of each decile and stratum after another, in the order in
    which they were drawn. `cells`: the decile or stratum of each. None: all. `first`: places of which MORE times
    as many are kept beside these, from the front."""
    if most is None or len(cells) <= most:
        return list(range(len(cells)))
    by_cell: dict[object, list[int]] = {}
    for at, cell in enumerate(cells):
        by_cell.setdefault(cell, []).append(at)
    found: list[int] = []
    for a_round in zip_longest(*by_cell.values()):
        found += sorted(at for at in a_round if at is not None)
        if len(found) >= most:
            break
    kept = set(found[:most])
    more = [at for at in first if at not in kept]
    return sorted(kept.union(more[: MORE * most]))


def missed(entries: Iterable[Json]) -> list[int]:
    """Places of held-out windows that a judge was wrong about, or gave no readable answer on; those first that most
    of such trials are of. `entries`: a feature's trials as `trials_entry` gives them."""
    found: Counter[int] = Counter()
    for trials in entries:
        windows = trials.get("window") or ()
        found.update(
            at for at, is_missed in zip(windows, _missed(trials), strict=True) if is_missed and at is not None
        )
    return sorted(found, key=lambda at: (-found[at], at))


def _missed(trials: Json) -> Iterable[bool]:
    """Of each trial. A column that is left out has no answer."""
    match trials["kind"]:
        case Trials.kind | InBlocks.kind:
            answers = trials.get("answer") or [None] * len(trials["truth"])
            return (answer != truth for truth, answer in zip(trials["truth"], answers, strict=True))
        case Ranked.kind:
            return (value is None for value in trials.get("value") or [None] * len(trials["truth"]))
        case Predictions.kind:
            return (all(value is None for value in values) for values in trials["predicted"])
        case _:
            return ()


def entry(at: int, window: Window) -> Json:
    """`at`: its place among the windows of its split, by which trials name it."""
    is_silent = not any(window.activations)
    fires = [] if is_silent else [place for place, value in enumerate(window.activations) if value > 0]
    is_short = len(window.text) <= LONGEST
    return {
        "at": at,
        "tokens": window.texts if is_short else [cut(text) for text in window.texts],
        "places": fires,
        "values": [to_4_digits(window.activations[place]) for place in fires],
        "band": window.band,
        "stratum": window.stratum,
    }


def trials_entry(trials: Json, heldout: Callable[[], Sequence[Window]]) -> Json:
    """A record's trials without columns in which nothing stands. `window` is added to predictions: the place of the
    held-out window with these activations. `heldout`: gives all of them."""
    is_of_texts = trials["kind"] == Responses.kind
    unused = _UNUSED if is_of_texts else _UNUSED | {"maximum"}
    found: Json = {name: column for name, column in trials.items() if name not in unused and _says(column)}
    if is_of_texts:
        found["text"] = [cut(text) for text in trials["text"]]
    if trials["kind"] == Predictions.kind:
        places = {_seen_as(one): at for at, one in enumerate(heldout())}
        keys = zip(trials["document"], trials["actual"], strict=True)
        found["window"] = [places.get((document, tuple(actual))) for document, actual in keys]
    return found


def _says(column: Any) -> bool:
    """Also where there is no trial at all: the page counts them."""
    if not column or not isinstance(column, list):
        return True
    values = cast(list[Any], column)
    return values.count(None) + values.count([]) < len(values)


def _seen_as(window: Window) -> tuple[str, tuple[float, ...]]:
    return window.document[:8], tuple(map(to_4_digits, window.activations))
