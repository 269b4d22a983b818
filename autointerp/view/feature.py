"""All that a run knows of its features, read a unit at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from autointerp.activations.histogram import EDGES
from autointerp.activations.random_rates import RandomRates
from autointerp.effects import SceneTexts, read_effects
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.sampling.text import SplitName
from autointerp.stages.evidence import scene_texts
from autointerp.stages.known import load_directions
from autointerp.stages.sample import window_stores
from autointerp.subject.vocabulary import Vocabulary
from autointerp.trials import to_4_digits
from autointerp.types import EXPLAINABLE, Directions, FeatureId, Json, TokenEffects, Window
from autointerp.view.controls import OwnControls
from autointerp.view.packed import cut, cut_all
from autointerp.view.windows import chosen, entry, missed, trials_entry

_OF_SAMPLE: Final = (
    "status", "contrast", "n_tokens", "n_fired", "n_rows", "n_documents", "n_windows", "rates",
)  # fmt: skip
_OF_EXPLANATION: Final = ("status", "text", "label", "llm", "reason", "details", "refused_by", "prompts")
_OF_SCORE: Final = ("status", "protocol", "llm", "contrast", "reason", "sequential")
_SPLITS: Final[tuple[SplitName, ...]] = ("shown", "heldout")
N_PROMPTS: Final = 5
"""Of those that were continued while the feature was pushed."""


class Unit:
    """The records of one unit of a dictionary. Memory: these."""

    def __init__(
        self,
        run: Run,
        dictionary: str,
        unit: str,
        vocabulary: Vocabulary,
        rates: RandomRates | None,
        controls: OwnControls,
    ) -> None:
        """Raises JournalCorrupt, RecipeChanged, and RunError where a window store is missing."""
        self._run, self._dictionary, self._rates = run, dictionary, rates
        self._vocabulary = vocabulary
        located = run.existing("sample", dictionary).located(unit)
        self.samples = {key: record for key, (record, _) in located.items()}
        self._directions = load_directions(run, dictionary, unit)
        self._effects = run.existing("intervene", dictionary).read(unit)
        self._explained = {
            name: run.existing("explain", dictionary, name).read(unit) for name in run.recipe.explainers
        }
        self._scored = {pair: run.existing("score", dictionary, *pair).read(unit) for pair in run.scored()}
        self._controls = controls.of_unit(unit, self._scored)
        sampled = [key for key, record in self.samples.items() if record["status"] in EXPLAINABLE]
        self._windows = window_stores(located, sampled, vocabulary)

    def explained(self, key: str) -> dict[str, Json]:
        """By explainer."""
        return {name: records[key] for name, records in self._explained.items() if key in records}

    def scored(self, key: str) -> dict[tuple[str, str], Json]:
        """By explainer and scorer."""
        return {pair: records[key] for pair, records in self._scored.items() if key in records}

    def entry(self, key: str, n_windows: int | None) -> Json:
        """`n_windows`: at most so many of each split, and MORE times as many that judges were wrong about."""
        windows = self._windows.get(key)
        scored = self.scored(key)
        trials = [trials_entry(one["trials"], partial(self._heldout, key)) for one in scored.values()]
        first = {"heldout": missed(trials)}
        cells = {} if windows is None else {split: windows.cells(key, split) for split in _SPLITS}
        return {
            "id": key,
            "sample": self._sample(key),
            "directions": self._known_directions(key),
            "explanations": [
                {"explainer": name} | _picked(record, _OF_EXPLANATION)
                for name, record in self.explained(key).items()
            ],
            "windows": {}
            if windows is None
            else {
                split: _entries(windows, key, split, chosen(cells[split], n_windows, first.get(split, ())))
                for split in _SPLITS
            },
            "n_windows": {split: len(of_split) for split, of_split in cells.items()},
            "scores": [
                {"explainer": explainer, "scorer": scorer}
                | _picked(record, _OF_SCORE)
                | {"metrics": record["metrics"], "trials": asked}
                | {"controls": self._controls.get((key, explainer, scorer), [])}
                for ((explainer, scorer), record), asked in zip(scored.items(), trials, strict=True)
            ],
            "effects": self._known_effects(key, windows),
        }

    def _heldout(self, key: str) -> list[Window]:
        heldout = self._windows[key].heldout(key)
        return [*heldout.active, *heldout.silent]

    def _sample(self, key: str) -> Json:
        record = self.samples[key]
        feature = FeatureId.parse(key)
        random = self._rates.of(self._run.identities.columns([feature])[0].item()) if self._rates else None
        bins = {int(name): n for name, n in record["histogram"].items()}
        return {name: record[name] for name in _OF_SAMPLE} | {
            "maximum": to_4_digits(record["maximum"]),
            "mean": to_4_digits(record["mean"]),
            "random_rate": None if random is None else random.rate,
            "top_tokens": [[self._text(token), n] for token, n in record["top_tokens"]],
            "histogram": [[*_edges(number), bins.get(number, 0)] for number in _span(bins)],
        }

    def _known_directions(self, key: str) -> Json | None:
        known = self._directions.get(key)
        if known is None:
            return None
        return {
            "promoted": self._tokens(known.promoted),
            "suppressed": self._tokens(known.suppressed),
            "nearest": _nearest(self._dictionary, known),
        }

    def _tokens(self, effects: TokenEffects | None) -> list[list[Any]] | None:
        if effects is None:
            return None
        return [
            [self._text(token), effect] for token, effect in zip(effects.ids, effects.effects, strict=True)
        ]

    def _text(self, token: int) -> str:
        return cut(self._vocabulary.pieces([token])[0])

    def _known_effects(self, key: str, windows: Windows | None) -> Json | None:
        """What pushing the feature writes behind prompts that explainers see."""
        record = self._effects.get(key)
        if record is None or windows is None:
            return None
        effects = read_effects(record)
        if effects.shown is None:
            return {"status": effects.status}
        texts = scene_texts(effects.shown, windows.shown(key).active, self._vocabulary)
        return {"status": effects.status} | _scene(texts)


def _entries(windows: Windows, key: str, split: SplitName, at: list[int]) -> list[Json]:
    return [entry(place, one) for place, one in zip(at, windows.windows(key, split, at), strict=True)]


def _picked(record: Json, names: tuple[str, ...]) -> Json:
    return {name: cut_all(record[name]) for name in names if record.get(name) is not None}


def _scene(texts: SceneTexts) -> Json:
    steered = [
        {"texts": list(one.texts[:N_PROMPTS])}
        | {name: value for name, value in asdict(one).items() if name != "texts"}
        for one in texts.steered
    ]
    kept = {"prompts": list(texts.prompts[:N_PROMPTS]), "clean": list(texts.clean[:N_PROMPTS])}
    return cut_all(kept | {"steered": steered})


def _nearest(dictionary: str, known: Directions) -> list[list[Any]]:
    pairs = zip(known.neighbours, known.similarity, strict=True)
    return [[f"{dictionary}/{index}", similarity] for index, similarity in pairs]


def _span(bins: dict[int, int]) -> range:
    """From the first bin in which something lies to the last."""
    return range(min(bins), max(bins) + 1) if bins else range(0)


_EDGES: Final = [to_4_digits(float(edge)) for edge in EDGES]


def _edges(number: int) -> Iterator[float]:
    """Where a bin begins and ends; the first and last of all are open."""
    yield _EDGES[number - 1] if number else 0.0
    yield _EDGES[min(number, len(_EDGES) - 1)]
