"""What explainers see: the windows that are shown, and what each declares that it needs, never held-out windows.
And what scorers see: these, and what pushing the feature does on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

from autointerp.effects import Effects, EffectTexts, Scene, SceneTexts, Written, read_effects
from autointerp.errors import RunError
from autointerp.evidence import Evidence, Promoted, needs_of, uses_of
from autointerp.explainers.protocol import Explainer
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.scorers.protocol import Scorer
from autointerp.splits import Heldout, Probed, Shown
from autointerp.stages.known import load_directions
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Directions, Json, TokenEffects, Window


class UnitEvidence:
    """Of the features of one unit."""

    def __init__(
        self, run: Run, dictionary: str, unit: str, windows: Mapping[str, Windows], vocabulary: Vocabulary
    ) -> None:
        """`windows`: the store of each feature that will be asked for."""
        self._run, self._dictionary, self._unit = run, dictionary, unit
        self._windows, self._vocabulary = windows, vocabulary
        self._probes: dict[tuple[str, str], tuple[dict[str, Json], dict[str, Json]]] = {}

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
            shown,
            select=windows.select(feature) if "select" in uses else None,
            directions=directions,
            effects=self._effects_on(feature, windows, shown) if "effects" in uses else None,
        ).only(uses)

    def heldout(self, feature: str, scorer: Scorer, place: tuple[str, str]) -> Heldout:
        """What a scorer gets; not for explainers. `place`: names of explainer and scorer."""
        if "probe" in needs_of(scorer):
            probed = self._probed(feature, *place)
            return dataclasses.replace(self._windows[feature].heldout(feature), probed=probed)
        heldout = self._windows[feature].heldout(feature)
        effects = self._effects.get(feature) if "effects" in uses_of(scorer) else None
        if effects is None:
            return heldout
        pushed, ablated = (
            None if scene is None else scene_texts(scene, heldout.active, self._vocabulary)
            for scene in (effects.heldout, effects.ablated)
        )
        return dataclasses.replace(heldout, pushed=pushed, ablated=ablated)

    def _probed(self, feature: str, explainer: str, scorer: str) -> Probed | None:
        """None where no text could be written."""
        texts, responses = self._read_probe(explainer, scorer)
        if feature not in responses:
            return None
        windows = self._windows[feature]
        active = (
            one for of in (windows.shown, windows.select, windows.heldout) for one in of(feature).active
        )
        return Probed(
            texts=tuple(texts[feature]["texts"]),
            maxima=tuple(responses[feature]["maxima"]),
            smallest=min((window.maximum for window in active), default=0.0),
        )

    def _read_probe(self, explainer: str, scorer: str) -> tuple[dict[str, Json], dict[str, Json]]:
        """Texts and responses, by feature; read once."""
        place = explainer, scorer
        if place not in self._probes:
            run, at = self._run, (self._dictionary, explainer, scorer)
            self._probes[place] = run.texts(*at).read(self._unit), run.responses(*at).read(self._unit)
        return self._probes[place]

    @cached_property
    def _effects(self) -> dict[str, Effects]:
        records = self._run.intervene(self._dictionary).read(self._unit)
        return {key: read_effects(record) for key, record in records.items()}

    def _effects_on(self, feature: str, windows: Windows, shown: Shown) -> EffectTexts | None:
        effects = self._effects.get(feature)
        if effects is None or effects.shown is None or effects.select is None:
            return None
        select = windows.select(feature)
        return EffectTexts(
            scene_texts(effects.shown, shown.active, self._vocabulary),
            scene_texts(effects.select, select.active, self._vocabulary),
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


def scene_texts(scene: Scene, active: Sequence[Window], vocabulary: Vocabulary) -> SceneTexts:
    """`active`: the active windows of the split that the scene is of, in the store's order."""
    places = zip(scene.windows, scene.begins, scene.ends, strict=True)
    prompts = [active[window].token_ids[begin:end] for window, begin, end in places]
    return SceneTexts(
        prompts=tuple("".join(vocabulary.pieces(ids)) for ids in prompts),
        documents=tuple(active[window].document for window in scene.windows),
        clean=_continued(prompts, scene.clean, vocabulary),
        steered=tuple(
            Written(
                arm=one.arm,
                target_kl=one.target_kl,
                status=one.status,
                kl=one.kl,
                raised=_tokens(one.raised, vocabulary),
                lowered=_tokens(one.lowered, vocabulary),
                texts=_continued(prompts, one.texts, vocabulary),
            )
            for one in scene.steered
        ),
    )


def _tokens(effects: TokenEffects, vocabulary: Vocabulary) -> tuple[str, ...]:
    return tuple(vocabulary.pieces([one])[0] for one in effects.ids)


def _continued(
    prompts: list[tuple[int, ...]], texts: list[list[int]], vocabulary: Vocabulary
) -> tuple[str, ...]:
    """What each text adds to its prompt; none where there are no texts."""
    pairs = zip(prompts, texts, strict=False)
    return tuple("".join(vocabulary.pieces([*ids, *text])[len(ids) :]) for ids, text in pairs)
