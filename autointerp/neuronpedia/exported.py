"""Features of a run in Neuronpedia's columns: what was published of them word for word, else what the run holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from autointerp.activations.histogram import EDGES, N_BINS, bins
from autointerp.neuronpedia.kept import kept
from autointerp.neuronpedia.layout import NO_BIN
from autointerp.neuronpedia.naming import Names
from autointerp.neuronpedia.reading import Published
from autointerp.neuronpedia.scores import scores_of
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.sampling.text import SPLITS
from autointerp.splits import Heldout
from autointerp.stages.sample import unit_windows
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import EXPLAINABLE, FeatureId, Json, Window

N_TOP: Final = 20
"""The strongest windows are of no interval, as SAEDashboard has them."""
N_A_BIN: Final = 5
"""Windows an interval."""
_OCTAVES: Final = 4
"""Intervals from the maximum down, each half the one before; below them one more, down to silence."""


@dataclass(slots=True)
class Exported:
    """One feature. Rows lack the names of model and source, which are the same in all."""

    index: int
    neuron: Json
    activations: list[Json]
    explanations: list[Json] = field(default_factory=list[Json])
    scores: list[Json] = field(default_factory=list[Json])
    n_without_value: int = 0
    """Scores that are no number."""


class Exporter:
    """Of one dictionary. Memory: the records of one unit and its windows."""

    def __init__(self, run: Run, dictionary: str, names: Names) -> None:
        self._run, self._dictionary, self._names = run, dictionary, names
        self._vocabulary = Vocabulary.load(run.vocabulary)

    def features(self, unit: str) -> Iterator[Exported]:
        """Those sampled, ascending. Raises RunError."""
        run, dictionary = self._run, self._dictionary
        samples = run.existing("sample", dictionary).read(unit)
        keys = sorted(samples, key=FeatureId.parse)
        explainable = [key for key in keys if samples[key]["status"] in EXPLAINABLE]
        stores = unit_windows(run, dictionary, unit, explainable, self._vocabulary)
        directions = run.existing("directions", dictionary).read(unit)
        published = kept(run, dictionary, unit)
        explained = {
            name: run.existing("explain", dictionary, name).read(unit) for name in run.recipe.explainers
        }
        scored = {pair: run.existing("score", dictionary, *pair).read(unit) for pair in run.scored()}
        for key in keys:
            windows = stores.get(key)
            if key in published:
                one = _as_published(published[key], self._names)
            else:
                index = FeatureId.parse(key).column(run.identities.poles[dictionary])
                activations = [] if windows is None else _activations(samples[key], windows, key)
                one = Exported(index, self._neuron(samples[key], directions.get(key)), activations)
            heldout = None if windows is None else windows.heldout(key)
            for name, records in explained.items():
                if key in records and records[key]["status"] == "ok":
                    of_it = {
                        scorer: of[key] for (who, scorer), of in scored.items() if who == name and key in of
                    }
                    self._add(one, name, records[key], of_it, heldout)
            yield one

    def _add(
        self, one: Exported, explainer: str, record: Json, scored: dict[str, Json], heldout: Heldout | None
    ) -> None:
        """An explanation, and its scores by scorer. One that came along with the feature is there already."""
        row = self._explanation(one.index, explainer, record)
        if self._run.recipe.explainers[explainer]["use"] == "published" and one.explanations:
            row = one.explanations[0]
        elif any(row["id"] == other["id"] for other in one.explanations):
            return
        else:
            one.explanations.append(row)
        found = scores_of(self._run, self._names, row["id"], scored, heldout)
        one.scores += found.rows
        one.n_without_value += found.n_without_value

    def _neuron(self, sample: Json, directions: Json | None) -> Json:
        counts: dict[str, int] = sample["histogram"]
        places = sorted(map(int, counts))
        row: Json = {
            "maxActApprox": sample["maximum"],
            "hookName": self._names.hook,
            "freq_hist_data_bar_heights": [counts[str(at)] for at in places],
            "freq_hist_data_bar_values": [_middle(at, sample["maximum"]) for at in places],
        }
        if sample["n_tokens"]:
            row["frac_nonzero"] = sample["n_fired"] / sample["n_tokens"]
        if directions is None:
            return row
        row |= {"topkCosSimIndices": directions["neighbours"], "topkCosSimValues": directions["similarity"]}
        for name, side in (("promoted", "pos"), ("suppressed", "neg")):
            effects: Json | None = directions[name]
            if effects is not None:
                row[f"{side}_str"] = [self._vocabulary.pieces([token])[0] for token in effects["ids"]]
                row[f"{side}_values"] = effects["effects"]
        return row

    def _explanation(self, index: int, explainer: str, record: Json) -> Json:
        use = self._run.recipe.explainers[explainer]["use"]
        prompts = ", ".join(f"{name} {text[:8]}" for name, text in sorted(record["prompts"].items()))
        return {
            "id": self._names.id("explanation", index, explainer, record["text"]),
            "description": record["text"],
            "typeName": self._names.kind,
            "explanationModelName": bare(record["llm"]),
            "notes": f"autointerp: explainer {explainer} ({use}); LLM {record['llm']}; "
            f"prompts {prompts or 'none'}; label: {record['label'] or 'none'}",
        }


def bare(llm: str) -> str | None:
    """`org/Model@revision` -> `model`, as models are registered there; None where there is none."""
    return None if llm == "none" else llm.partition("@")[0].rpartition("/")[2].lower()


def _as_published(feature: Published, names: Names) -> Exported:
    activations = list(map(_with_extremes, feature.activations))
    neuron = dict(feature.neuron)
    if neuron.get("maxActApprox") is None:
        neuron["maxActApprox"] = max((one["maxValue"] for one in activations), default=0.0)
    neuron["hasVector"] = bool(neuron.get("vector"))
    explanations = [
        one | {"id": one.get("id") or names.id("explanation", feature.index, number)}
        for number, one in enumerate(feature.explanations)
    ]
    return Exported(feature.index, neuron, activations, explanations)


def _with_extremes(row: Json) -> Json:
    values: Sequence[float] = row["values"]
    row = row | {"maxValue": max(values), "minValue": min(values)}
    row["maxValueTokenIndex"] = values.index(row["maxValue"])
    if isinstance(keys_queries := row.pop("zIndices", None), list):
        row["zKIndices"], row["zQIndices"] = keys_queries
    return row


# --- windows of a run ----------------------------------------------------------------------------------


def _middle(at: int, maximum: float) -> float:
    """Of a bar: the outermost bins have no edge outside."""
    low = 0.0 if at == 0 else float(EDGES[at - 1])
    high = float(EDGES[at]) if at < N_BINS - 1 else maximum
    return (low + min(high, max(maximum, low))) / 2


def _activations(sample: Json, windows: Windows, key: str) -> list[Json]:
    """The strongest windows, of no interval; then some of each interval of their maximum, and some silent ones in
    the lowest. `binContains`: share of the tokens looked at whose activation lies in the interval."""
    splits = [getattr(windows, split)(key) for split in SPLITS]
    active = sorted((one for of in splits for one in of.active), key=lambda one: -one.maximum)
    silent = [one for of in splits for one in of.silent if one.stratum == "random"]
    rows = [
        _row(one) | {"binMin": NO_BIN, "binMax": sample["maximum"], "binContains": NO_BIN}
        for one in active[:N_TOP]
    ]
    intervals = list(_intervals(sample))
    taken = [0] * len(intervals)
    for one in (*active[N_TOP:], *silent):
        at = next(n for n, interval in enumerate(intervals) if _bin(one) >= interval[0])
        if taken[at] < N_A_BIN:
            taken[at] += 1
            _, low, high, share = intervals[at]
            rows.append(_row(one) | {"binMin": low, "binMax": high, "binContains": share})
    return rows


def _bin(window: Window) -> int:
    return int(bins(np.array([window.maximum], np.float32))[0]) if window.maximum > 0 else -1


def _intervals(sample: Json) -> Iterator[tuple[int, float, float, float | None]]:
    """(first bin, low, high, share of tokens) from the maximum down; the last one holds silence."""
    counts = {int(at): n for at, n in sample["histogram"].items()}
    n_tokens: int = sample["n_tokens"]
    top = high = max(counts, default=0)
    upper = sample["maximum"]
    for _ in range(_OCTAVES):
        first = top - 1
        if first <= 0:
            break
        low = float(EDGES[first - 1])
        n = sum(counts.get(at, 0) for at in range(first, top + 1))
        yield first, low, upper, n / n_tokens if n_tokens else None
        top, upper = first - 1, low
    n_above = sum(n for at, n in counts.items() if top < at <= high)
    yield -1, 0.0, upper, 1 - n_above / n_tokens if n_tokens else None


def _row(window: Window) -> Json:
    values: list[Any] = list(window.activations)
    row: Json = {"tokens": list(window.texts), "values": values}
    row |= {
        "maxValue": window.maximum,
        "minValue": min(values),
        "maxValueTokenIndex": values.index(window.maximum),
    }
    return row | {"qualifyingTokenIndex": row["maxValueTokenIndex"], "dataIndex": window.document}
