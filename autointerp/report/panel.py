"""Scores beside those of control explanations, on the same features of the panel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autointerp.journal import unit_of_feature
from autointerp.metrics import MeanOver
from autointerp.metrics.paired import p_signed_rank
from autointerp.panel import Control, key_of, lenders, panel_of, stand_in
from autointerp.recipe import ControlKind
from autointerp.report.scores import Paired
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
                place = _place(run, dictionary, explainer, scorer, kind)
                known = _records(run, panel, *place) if own and place else {}
                lent: Mapping[str, str | None] = borrowed if kind == "shuffled" else dict.fromkeys(panel)
                found = _summary(own, known, lent, run.recipe.seed)
                if found is not None:
                    yield ControlSummary(explainer, scorer, kind, *found)


def _place(
    run: Run, dictionary: str, explainer: str, scorer: str, kind: ControlKind
) -> tuple[str, ...] | None:
    """Of the journal that has the control's scores. None for an explainer that is the control."""
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
    found = Paired()
    for feature in sorted(lent):
        of_control = known.get(key_of(feature, lent[feature]))
        if feature in own and of_control is not None:
            found.add(own[feature], of_control)
    means = [of.mean(seed=seed, purpose="control") for of in (found.first, found.second, found.pooled)]
    if means[0] is None or means[1] is None or means[2] is None:
        return None
    return means[0], means[1], means[2], p_signed_rank(found.pooled.values)
