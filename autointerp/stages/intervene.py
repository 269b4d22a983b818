"""Intervene: push the model along each feature's direction, and record what it then says. Runs in a device child.

    shown, select    the feature alone: what explainers see, and what choosing between explanations goes by
    heldout          the feature and its controls at equal KL: what a scorer tests on

Each split has prompts of its own documents, and strengths of its own: nothing of a test reaches an explainer.
A feature is a record; a kill loses the one that was being made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from torch import Tensor

from autointerp import draw
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.spec import Weights
from autointerp.effects import Arm, Effects, Scene
from autointerp.errors import ModelError
from autointerp.journal import Part
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.sources import DictionaryFound
from autointerp.stages.cache import choose_device
from autointerp.stages.calibrating import weights_of
from autointerp.stages.frozen import read_frozen, within_memory
from autointerp.stages.sample import by_unit, load_vocabulary, unit_windows
from autointerp.subject.interventions import (
    Prompt,
    ablated,
    direction,
    other_feature,
    prompts,
    pushed,
    random_direction,
    uniform_numbers,
)
from autointerp.subject.model import Subject
from autointerp.subject.sites import width_at
from autointerp.subject.steering import Ablating, Adding, Steering
from autointerp.subject.tokenizer import bos_of
from autointerp.types import FeatureId, Window


def run_intervene(run: Run, resolved: Resolved, progress: Progress, stop: Stop) -> None:
    """Records what is missing. Raises InputErrors, DiskFull, Interrupted."""
    missing = {name: features for name in run.recipe.dictionaries if (features := run.without_effects(name))}
    if not missing:
        return
    assert resolved.model is not None  # `needs` refuses recipes without one
    frozen = read_frozen(run)
    progress.note(f"loading {run.recipe.model.path} ...")
    subject = Subject.load(
        resolved.model,
        dtype=frozen.dtype if frozen else run.recipe.model.dtype,
        device=choose_device(run.recipe.resources.device),
        device_map=run.recipe.resources.device_map,
    )
    vocabulary = load_vocabulary(run)
    progress.begin("intervene", sum(map(len, missing.values())), "features")
    for name, features in missing.items():
        intervening = Intervening(run, name, resolved.dictionaries[name], subject, stop, len(vocabulary))
        for unit, of_unit in by_unit(features):
            windows = unit_windows(run, name, unit, map(str, of_unit), vocabulary)
            with Part(run.intervene(name), unit) as part:
                for feature in of_unit:
                    stop.check()
                    effects = intervening.effects(feature, windows[str(feature)])
                    part.append(str(feature), dataclasses.asdict(effects))
                    progress.advance()
    progress.end()


class Intervening:
    """What pushes the features of one dictionary."""

    def __init__(
        self, run: Run, name: str, found: DictionaryFound, subject: Subject, stop: Stop, n_tokens: int
    ) -> None:
        self._run, self._found, self._stop = run, found, stop
        self._settings, self._seed = run.recipe.intervention, run.recipe.seed
        self._bos = bos_of(subject.tokenizer) if run.recipe.cache.prepend_bos else None
        self._weights: Weights = weights_of(run, name, found, str(subject.device))
        self._sites = found.writes
        self._widths = [width_at(site, subject.architecture) for site in self._sites]
        self._steering = Steering(subject, self._sites, n_tokens)

    def effects(self, feature: FeatureId, windows: Windows) -> Effects:
        """One feature's record. Raises ModelError where the device has no room for a single row."""
        key, settings = str(feature), self._settings
        row_O = direction(self._weights, feature)
        if not bool(row_O.any()):
            return Effects("no_direction")
        shown, select, heldout = windows.shown(key), windows.select(key), windows.heldout(key)
        chosen = {
            "shown": self._prompts(shown.active, settings.n_shown, key),
            "select": self._prompts(select.active, settings.n_select, key),
            "heldout": self._prompts(heldout.active, settings.n_heldout, key),
        }
        if min(map(len, chosen.values())) < settings.minimum:
            return Effects("too_few_prompts")
        other = other_feature(self._weights, self._found.spec, feature, self._seed)
        alone: dict[Arm, Tensor] = {"feature": row_O}
        controls: dict[Arm, Tensor] = {"random": random_direction(row_O, self._widths, self._seed, key)}
        if other is not None:
            controls["other"] = direction(self._weights, other)
        return Effects(
            status="ok",
            other=None if other is None else str(other),
            shown=self._pushed(chosen["shown"], alone, key),
            select=self._pushed(chosen["select"], alone, key),
            heldout=self._pushed(chosen["heldout"], alone | controls, key),
            ablated=self._ablated(heldout.active, feature) if settings.ablate else None,
        )

    def _prompts(
        self, active: tuple[Window, ...], n: int, feature: str, *, behind: bool = False
    ) -> list[Prompt]:
        key = draw.key(self._seed, "intervene", feature)
        return prompts(active, n, key, self._settings, self._bos, behind=behind)

    def _pushed(self, chosen: list[Prompt], directions: dict[Arm, Tensor], feature: str) -> Scene:
        uniform_PT = uniform_numbers(chosen, self._settings.n_tokens, self._seed, feature)
        adding = partial(Adding, self._sites)
        return self._within_memory(
            lambda: pushed(
                self._steering, chosen, directions, self._settings, uniform_PT, adding, self._stop.check
            )
        )

    def _ablated(self, active: tuple[Window, ...], feature: FeatureId) -> Scene | None:
        """None for a crosscoder: what its feature is depends on layers behind those it would be taken from."""
        chosen = self._prompts(active, self._settings.n_heldout, str(feature), behind=True)
        if len(self._found.inputs) > 1 or not chosen:
            return None
        uniform_PT = uniform_numbers(chosen, self._settings.n_tokens, self._seed, str(feature))
        spec = self._found.spec
        encoder, column = Encoder(spec, self._weights, place=self._found.place), feature.column(spec.n_poles)
        pushes = Ablating(encoder, column, self._found.site, self._sites[0])
        return self._within_memory(
            lambda: ablated(self._steering, chosen, pushes, self._settings, uniform_PT, self._stop.check)
        )

    def _within_memory(self, step: Callable[[], Scene]) -> Scene:
        """With half the rows at once, for good, where they don't fit."""

        def halve() -> None:
            if self._steering.rows_at_once == 1:
                raise ModelError(
                    "not even one steered prompt fits the device's memory. Use shorter prompts (--set "
                    "intervention.longest=32), bfloat16, or resources.device_map=auto over several cards."
                )
            self._steering.rows_at_once //= 2

        return within_memory(step, halve)
