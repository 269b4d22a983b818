"""The folders that EleutherAI/delphi leaves: explanations/ and scores/.

    explanations/HOOK_latent17.txt   a JSON string
    scores/SCORER/HOOK_latent17.txt  a list, an object a window: str_tokens, activations, distance (the decile; -1
                                     behind silent windows), activating or ground_truth, prediction, probability,
                                     correct, highlighted

Predecessors wrote `_feature17`. A prediction is true, false, 1, 0, or, where nothing could be read, null or -1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import orjson

from autointerp.errors import PublishedError
from autointerp.types import Json

_NAME: Final = re.compile(r"(?P<hook>.+)_(?:latent|feature)(?P<index>\d+)\.(?:txt|json)")
NO_EXPLANATION: Final = "Explanation could not be parsed."
"""What delphi writes for a reply that it could not read; later stages there score it."""

Reading = Literal["answer", "right"]
"""What `prediction` means: what the judge said, or whether that was right."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One window and what was said of it."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    band: int | None
    truth: bool
    prediction: bool | None
    """As it is stored; None where nothing could be read."""
    correct: bool | None
    """As it is stored; None where it is not."""
    probability: float | None
    highlighted: bool


@dataclass(frozen=True, slots=True)
class Results:
    """All that lies in a folder. Features are (hook, index)."""

    explanations: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    scores: dict[str, dict[tuple[str, int], list[Asked]]] = field(
        default_factory=dict[str, dict[tuple[str, int], list[Asked]]]
    )
    """By scorer."""
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    """Scorers whose files are not of this kind, and why."""
    n_empty: dict[str, int] = field(default_factory=dict[str, int])
    """By scorer, files without a window."""


def read_results(folder: Path) -> Results:
    """Raises PublishedError for a folder or file that is not as above."""
    found = Results()
    if not folder.is_dir():
        raise PublishedError(f"there is no folder {folder}. `import` takes a folder, or hub:ORG/NAME.")
    explanations, scores = folder / "explanations", folder / "scores"
    if not explanations.is_dir() or not scores.is_dir():
        raise PublishedError(
            f"{folder} holds no explanations/ and scores/, as a delphi run does, and no manifest.json, as a set does "
            f"that `autointerp publish` made. Give the folder of either."
        )
    for key, path in _files(explanations):
        text = _json(path)
        if not isinstance(text, str):
            raise PublishedError(
                f"{path} holds {type(text).__name__}, not an explanation: a JSON string is expected."
            )
        found.explanations[key] = text
    for scorer in sorted(path for path in scores.iterdir() if path.is_dir()):
        of_scorer: dict[tuple[str, int], list[Asked]] = {}
        for key, path in _files(scorer):
            asked = _json(path)
            if asked == []:
                found.n_empty[scorer.name] = found.n_empty.get(scorer.name, 0) + 1
                continue
            if not isinstance(asked, list) or not _is_asked(cast(list[Any], asked)[0]):
                found.skipped[scorer.name] = f"{path.name} holds no list of windows with a prediction each"
                break
            of_scorer[key] = [_asked(cast(Json, one), path) for one in cast(list[Any], asked)]
        else:
            if of_scorer:
                found.scores[scorer.name] = of_scorer
            elif scorer.name in found.n_empty:
                found.skipped[scorer.name] = "all its files are empty lists"
    if not found.scores:
        why = "; ".join(f"{name}: {reason}" for name, reason in found.skipped.items())
        raise PublishedError(f"{scores} holds no scores that can be read{f' ({why})' if why else ''}.")
    return found


def _files(folder: Path) -> Iterator[tuple[tuple[str, int], Path]]:
    for path in sorted(folder.iterdir()):
        if (match := _NAME.fullmatch(path.name)) is not None:
            yield (match["hook"], int(match["index"])), path


def _json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise PublishedError(f"{path} is not JSON ({error}). Copy it again, or take it out.") from error


def _is_asked(one: Any) -> bool:
    return isinstance(one, dict) and {"str_tokens", "prediction"} <= cast(Json, one).keys()


def _asked(one: Json, path: Path) -> Asked:
    try:
        tokens = tuple(str(token) for token in one["str_tokens"])
        activations = tuple(float(value) for value in one.get("activations") or [0.0] * len(tokens))
        truth = one["activating"] if one.get("activating") is not None else one["ground_truth"]
        band = one.get("distance") if truth else None
        probability = one.get("probability")
        return Asked(
            tokens=tokens,
            activations=activations[: len(tokens)],
            band=int(band) if isinstance(band, int | float) and band >= 0 else None,
            truth=bool(truth),
            prediction=_yes_no(one["prediction"]),
            correct=_yes_no(one.get("correct")),
            probability=probability if isinstance(probability, float) and 0 <= probability <= 1 else None,
            highlighted=bool(one.get("highlighted")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PublishedError(
            f"{path}: a window lacks what a score has ({error!r}). Is it delphi's?"
        ) from error


def _yes_no(value: Any) -> bool | None:
    """-1 and null are no answer."""
    is_number = isinstance(value, bool | int | float) and math.isfinite(value)
    return bool(value) if is_number and value in (0, 1) else None


# --- what it says -----------------------------------------------------------------------------------------


def reading_of(scorer: str, asked: list[Asked], said: Reading | None) -> tuple[Reading, str]:
    """What `prediction` means, found from `correct`, and how that was found. `said`: by the user.

    `correct` is prediction == truth where `prediction` is the judge's answer. Where it equals `prediction` itself,
    either `prediction` holds whether the judge was right, or `correct` what it said: the files can't tell, and a
    published run read the one as the other; without `correct` they can't tell either. Raises PublishedError where
    nobody says.
    """
    known = [one for one in asked if one.prediction is not None and one.correct is not None]
    n_answer = sum(one.correct == (one.prediction == one.truth) for one in known)
    n_same = sum(one.correct == one.prediction for one in known)
    numbers = (
        f"of {len(known):,} windows `correct` is (prediction == truth) in {n_answer:,} and prediction itself in "
        f"{n_same:,}; balanced accuracy {_balanced(asked, 'answer')} if predictions are answers, "
        f"{_balanced(asked, 'right')} if they say whether the judge was right"
    )
    if said is not None:
        return said, f"{scorer}: predictions read as '{said}', as asked ({numbers})"
    if known and n_answer == len(known):
        return "answer", f"{scorer}: predictions are the judge's answers ({numbers})"
    if n_same == len(known):
        raise PublishedError(
            f"{scorer}: what a prediction is can't be told from the files: {numbers}. Say it: --prediction "
            f"answer, or --prediction right."
        )
    raise PublishedError(
        f"{scorer}: `correct` disagrees with the predictions: {numbers}. Say which to go by: --prediction answer, or "
        f"--prediction right."
    )


def answer(one: Asked, reading: Reading) -> bool | None:
    """What the judge said."""
    if one.prediction is None or reading == "answer":
        return one.prediction
    return one.truth if one.prediction else not one.truth


def _balanced(asked: list[Asked], reading: Reading) -> str:
    rates: list[float] = []
    for truth in (True, False):
        right = [
            said == truth
            for one in asked
            if one.truth == truth and (said := answer(one, reading)) is not None
        ]
        if not right:
            return "unknown"
        rates.append(sum(right) / len(right))
    return f"{sum(rates) / 2:.3f}"


MOST_UNREADABLE: Final = 0.5
MOST_IN_BOTH: Final = 0.01


def check_usable(scorer: str, of_feature: dict[tuple[str, int], list[Asked]]) -> None:
    """Raises PublishedError, with the numbers, where these are no test."""
    asked = [one for windows in of_feature.values() for one in windows]
    n_negative = sum(not one.truth for one in asked)
    if not 0 < n_negative < len(asked):
        which = "no silent windows" if n_negative == 0 else "no active windows"
        raise PublishedError(
            f"{scorer}: {which} among {len(asked):,}: whoever always gives one answer would be right, so there "
            f"is no score."
        )
    n_unreadable = sum(one.prediction is None for one in asked)
    if n_unreadable > MOST_UNREADABLE * len(asked):
        raise PublishedError(
            f"{scorer}: {n_unreadable:,} of {len(asked):,} answers could not be read: what is left is no sample."
        )
    n_both = sum(_n_in_both(windows) for windows in of_feature.values())
    if n_both > MOST_IN_BOTH * len(asked):
        raise PublishedError(
            f"{scorer}: {n_both:,} of {len(asked):,} windows stand, with the same text, both among the active and "
            f"among the silent ones of their feature: no answer to them is right."
        )


def _n_in_both(windows: list[Asked]) -> int:
    """Windows with marks are left out: there the marks are right or wrong, and the text may be the same."""
    plain = [one for one in windows if not one.highlighted]
    texts = {truth: {one.tokens for one in plain if one.truth == truth} for truth in (True, False)}
    return sum(one.tokens in texts[not one.truth] for one in plain)
