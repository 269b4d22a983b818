"""Scores beside those of control explanations, on the same features of the panel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from autointerp.floors import Row
from autointerp.journal import unit_of_feature
from autointerp.metrics import MeanOver
from autointerp.metrics.differences import Difference
from autointerp.metrics.features import Population
from autointerp.metrics.paired import p_signed_rank
from autointerp.panel import Control, key_of, lenders, panel_of, stand_in
from autointerp.recipe import ControlKind
from autointerp.report.sums import Against, ScoreRecord
from autointerp.run import Run
from autointerp.types import FeatureId, Json


@dataclass(frozen=True, slots=True)
class ControlSummary:
    """One explainer and scorer beside one control, on the features that have both scores."""

    explainer: str
    scorer: str
    kind: ControlKind
    own: MeanOver
    """Mean of the headline, as of the control; intervals over features and documents."""
    control: MeanOver
    difference: MeanOver
    """Own less control, feature by feature."""
    p_value: float | None
    """Wilcoxon's signed-rank test over features, two-sided."""


@dataclass(frozen=True, slots=True)
class BesideControl:
    """A score's mean beside that of one control, of whichever kind."""

    control: str
    """What it is, e.g. `shuffled explanation`."""
    n_features: int
    """That the control's mean is over."""
    mean: MeanOver | None
    own: MeanOver | None
    above: MeanOver | Difference | None
    """Own less the control's, with its interval."""
    p_value: float | None


CONTROL_NAMES: Final[dict[ControlKind, str]] = {
    "shuffled": "shuffled explanation",
    "top_tokens": "top-token list",
    "lexical": "lexical baseline",
}


def beside_controls(
    explainer: str, scorer: str, controls: Sequence[ControlSummary], floors: Sequence[Row]
) -> Iterator[BesideControl]:
    """Those of one explainer and scorer: explanations first, then the runs where there is nothing to find."""
    for one in controls:
        if (one.explainer, one.scorer) == (explainer, scorer):
            yield BesideControl(
                CONTROL_NAMES[one.kind], one.difference.n, one.control, one.own, one.difference, one.p_value
            )
    for row in floors:
        for floor in (
            row.floors if (row.instance.explainer, row.instance.scorer) == (explainer, scorer) else ()
        ):
            n, p_value = floor.mean.n if floor.mean else 0, floor.above.p_value if floor.above else None
            yield BesideControl(floor.control, n, floor.mean, row.real, floor.above, p_value)


def control_summaries(run: Run, dictionary: str) -> Iterator[ControlSummary]:
    """Explainer by explainer and scorer by scorer; none where nothing is scored yet. Memory: the panel's records of
    two journals."""
    controls = run.recipe.controls
    if controls is None:
        return
    panel = panel_of(run.recipe, run.identities, dictionary, run.existing("sample", dictionary))
    for explainer in run.recipe.explainers:
        borrowed = lenders(panel, _records(run, panel, "explain", dictionary, explainer))
        for scorer in run.recipe.scorers:
            own = _records(run, panel, "score", dictionary, explainer, scorer)
            for kind in controls.kinds:
                place = place_of(run, dictionary, explainer, scorer, kind)
                known = _records(run, panel, *place) if own and place else {}
                lent: Mapping[str, str | None] = borrowed if kind == "shuffled" else dict.fromkeys(panel)
                found = _summary(own, known, lent, run.recipe.seed)
                if found is not None:
                    yield ControlSummary(explainer, scorer, kind, *found)


def place_of(
    run: Run, dictionary: str, explainer: str, scorer: str, kind: ControlKind
) -> tuple[str, ...] | None:
    """Of the journal that has the control's scores of an explainer and scorer. None for an explainer that is the
    control."""
    if kind == "shuffled":
        return ("control", dictionary, Control(kind, explainer, scorer).place)
    own = stand_in(run.recipe, kind)
    if own is not None:
        return None if own == explainer else ("score", dictionary, own, scorer)
    return ("control", dictionary, Control(kind, None, scorer).place)


def _records(run: Run, panel: Sequence[str], *place: str) -> dict[str, Json]:
    """Of a journal, those of the units that the panel's features are in."""
    journal = run.existing(*place)
    units = sorted({unit_of_feature(FeatureId.parse(feature).index) for feature in panel})
    return {key: record for unit in units for key, record in journal.read(unit).items()}


def _summary(
    own: Mapping[str, Json], known: Mapping[str, Json], lent: Mapping[str, str | None], seed: int
) -> tuple[MeanOver, MeanOver, MeanOver, float | None] | None:
    found, populations = Against(), (Population(), Population())
    for feature in sorted(lent):
        of_control = known.get(key_of(feature, lent[feature]))
        if feature not in own or of_control is None:
            continue
        pair = ScoreRecord.of(own[feature]), ScoreRecord.of(of_control)
        if found.add(*pair):
            for population, score in zip(populations, pair, strict=True):
                score.add_to(population)
    means = [of.mean(seed=seed, purpose="control") for of in (*populations, found.pooled)]
    if means[0] is None or means[1] is None or means[2] is None:
        return None
    return means[0], means[1], means[2], p_signed_rank(found.pooled.values)
