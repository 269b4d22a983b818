"""What explainers see: the windows that are shown, and what each declares that it needs. Never held-out windows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from autointerp.errors import RunError
from autointerp.evidence import Evidence, Promoted, needs_of, uses_of
from autointerp.explainers.protocol import Explainer
from autointerp.metrics import HEADLINE_STRATA
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.stages.known import load_directions
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Directions, Shown


class UnitEvidence:
    """Of the features of one unit."""

    def __init__(
        self, run: Run, dictionary: str, unit: str, windows: Mapping[str, Windows], vocabulary: Vocabulary
    ) -> None:
        """`windows`: the store of each feature that will be asked for."""
        self._run, self._dictionary, self._unit = run, dictionary, unit
        self._windows, self._vocabulary = windows, vocabulary

    def of(self, feature: str, explainer: Explainer) -> Evidence:
        """Raises RunError where something turned out to be missing that the explainer can't do without."""
        uses, windows = uses_of(explainer), self._windows[feature]
        directions = self._promoted(feature) if "directions" in uses else None
        if directions is None and "directions" in needs_of(explainer):
            raise RunError(
                f"nothing is known of the tokens that {feature} promotes, which an explainer of this recipe needs: "
                f"{self._run.directions(self._dictionary).folder} has none of them. Leave that explainer out."
            )
        shown = windows.shown(feature)
        return Evidence(
            shown=shown if "hard" in uses else _without_hard(shown),
            select=windows.select(feature) if "select" in uses else None,
            directions=directions,
        )

    @cached_property
    def _directions(self) -> dict[str, Directions]:
        return load_directions(self._run, self._dictionary, self._unit)

    def _promoted(self, feature: str) -> Promoted | None:
        known = self._directions.get(feature)
        if known is None or known.promoted is None or known.suppressed is None:
            return None
        return Promoted(
            *(
                tuple(self._vocabulary.pieces([one])[0] for one in tokens.ids)
                for tokens in (known.promoted, known.suppressed)
            )
        )


def _without_hard(shown: Shown) -> Shown:
    """An explainer that doesn't ask for them sees the same with and without them."""
    return Shown(shown.active, tuple(window for window in shown.silent if window.stratum in HEADLINE_STRATA))
