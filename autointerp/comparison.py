"""Scores set against scores: two explainers, judges, protocols or dictionaries.

Features of the same dictionary on the same model are the same features, and are paired: what makes one hard to
explain drops out of the difference. Features of two dictionaries have nothing in common but what they are like.
Rare features score otherwise than frequent ones, so these are matched on density: in each half decade of the
share of tokens on which they fire, as many of one as of the other are kept, by keyed draw; then the means are
compared as those of two groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from autointerp import draw
from autointerp.errors import RecipeError, RunError
from autointerp.metrics.differences import Difference, paired, unpaired
from autointerp.metrics.paired import Discordant
from autointerp.metrics.records import Against, ScoreRecord
from autointerp.run import Run
from autointerp.scored import Instance, Scored, pooled, scored

BINS_A_DECADE: Final = 2

How = Literal["paired", "matched on density"]


@dataclass(frozen=True, slots=True)
class Compared:
    """One instance set against another."""

    first: Instance
    second: Instance
    headlines: tuple[str, str]
    """What number each of them is."""
    how: How
    difference: Difference | None
    """First minus second; None where no feature can be compared."""
    n_scored: tuple[int, int]
    """Features that each has a number for, of which those in common, or matched, are compared."""
    discordant: Discordant
    """Questions about the same windows that one alone answers right; none unless features are paired."""
    notes: tuple[str, ...] = ()
    """What else differs between the two."""


def compare(first: Run, second: Run, *, same_features: bool | None = None) -> list[Compared]:
    """Every scorer that both runs have, with explainers of the same name or, where each run has one, these.

    `same_features`: whether features of equal numbers are the same; None: if the runs' identities say so. Raises
    RunError where the runs have no scorer in common.
    """
    found: list[Compared] = []
    for one, other in _dictionaries(first, second):
        is_same = _is_same(first, one, second, other) if same_features is None else same_features
        for explainer, its_other in _explainers(first, second):
            for scorer in [name for name in first.recipe.scorers if name in second.recipe.scorers]:
                pair = Instance(one, explainer, scorer), Instance(other, its_other, scorer)
                found.append(_compared(first, second, *pair, "paired" if is_same else "matched on density"))
    if not found:
        raise RunError(
            f"{first.path} has the scorers {', '.join(first.recipe.scorers)}, and {second.path} has "
            f"{', '.join(second.recipe.scorers)}: none in common on dictionaries and explainers that go together. "
            f"Score one of them as the other is: autointerp explain --out RUN --scorer NAME"
        )
    return found


def compare_explainers(run: Run, first: str, second: str) -> list[Compared]:
    """Two explainers of one run on the same windows, by every scorer. Raises RecipeError for one it lacks."""
    for name in (first, second):
        if name not in run.recipe.explainers:
            known = ", ".join(run.recipe.explainers)
            raise RecipeError(f"{run.path} has no explainer '{name}'. It has: {known}.")
    return [
        _compared(run, run, Instance(name, first, scorer), Instance(name, second, scorer), "paired")
        for name in run.recipe.dictionaries
        for scorer in run.recipe.scorers
    ]


def _dictionaries(first: Run, second: Run) -> Iterator[tuple[str, str]]:
    """Those of the same name; else, where each run has one, these."""
    both = [name for name in first.recipe.dictionaries if name in second.recipe.dictionaries]
    ours, theirs = list(first.recipe.dictionaries), list(second.recipe.dictionaries)
    yield from ((name, name) for name in both)
    if not both and len(ours) == len(theirs) == 1:
        yield ours[0], theirs[0]


def _explainers(first: Run, second: Run) -> Iterator[tuple[str, str]]:
    both = [name for name in first.recipe.explainers if name in second.recipe.explainers]
    ours, theirs = list(first.recipe.explainers), list(second.recipe.explainers)
    yield from ((name, name) for name in both)
    if not both and len(ours) == len(theirs) == 1:
        yield ours[0], theirs[0]


def _is_same(first: Run, one: str, second: Run, other: str) -> bool:
    """Whether features of equal numbers are the same: the same weights at the same site of the same model."""
    of_each = [
        (run.identities.model, run.identities.dictionaries[name], run.identities.sites[name])
        for run, name in ((first, one), (second, other))
    ]
    return of_each[0] == of_each[1]


def _compared(first: Run, second: Run, one: Instance, other: Instance, how: How) -> Compared:
    a, b = scored(first, one), scored(second, other)
    seed, discordant = first.recipe.seed, Discordant()
    if how == "paired":
        found = _against((first, one), (second, other))
        # As `status` has it: two explainers of a run have the same interval there and here.
        difference, discordant = paired(found, seed=seed, purpose="difference"), found.discordant
    else:
        kept = map(frozenset, matched_on_density(a.densities, b.densities, seed))
        groups = [pooled(*of, keys) for of, keys in zip(((first, one), (second, other)), kept, strict=True)]
        purpose = f"{one.explainer} {other.explainer} {one.scorer}"
        difference = unpaired(*groups, seed=seed, purpose=purpose)
    return Compared(
        one,
        other,
        (a.headline, b.headline),
        how,
        difference,
        (len(a.values), len(b.values)),
        discordant,
        tuple(_notes(a, b)),
    )


def _against(*sides: tuple[Run, Instance]) -> Against:
    """The dictionary may go by another name in another run. Memory: one unit's records of both, and some numbers a
    feature."""
    journals = [run.existing("score", at.dictionary, at.explainer, at.scorer) for run, at in sides]
    asked = [{_number(str(feature)) for feature in run.asked(at.dictionary)} for run, at in sides]
    both, found = asked[0] & asked[1], Against()
    for unit in journals[0].units():
        ones, others = (
            {_number(key): record for key, record in journal.read(unit).items()} for journal in journals
        )
        for number in sorted(both & ones.keys() & others.keys()):
            found.add(ScoreRecord.of(ones[number]), ScoreRecord.of(others[number]))
    return found


def _number(feature: str) -> str:
    return feature.rpartition("/")[2]


def _notes(a: Scored, b: Scored) -> Iterator[str]:
    for what, one, other in (
        ("number", a.headline, b.headline),
        ("judge", a.llm, b.llm),
        ("protocol", a.protocol, b.protocol),
    ):
        if one and other and one != other:
            yield f"{what}: {one} | {other}"


def matched_on_density(
    first: Mapping[str, float], second: Mapping[str, float], seed: int
) -> tuple[list[str], list[str]]:
    """Features of each to compare: as many in each bin of density, `BINS_A_DECADE` bins a factor of ten."""
    bins: tuple[dict[int, list[str]], dict[int, list[str]]] = ({}, {})
    for of, in_bins in zip((first, second), bins, strict=True):
        for key, density in sorted(of.items()):
            if density > 0:
                in_bins.setdefault(math.floor(BINS_A_DECADE * math.log10(density)), []).append(key)
    kept: tuple[list[str], list[str]] = ([], [])
    for at in sorted(bins[0].keys() & bins[1].keys()):
        n = min(len(bins[0][at]), len(bins[1][at]))
        for number in (0, 1):
            kept[number].extend(_drawn(bins[number][at], n, seed, number))
    return kept


def _drawn(keys: Sequence[str], n: int, seed: int, side: int) -> list[str]:
    hashes = draw.keys(seed, f"matched {side}", keys)
    chosen: list[int] = draw.smallest(hashes, n).tolist()
    return [keys[at] for at in chosen]
