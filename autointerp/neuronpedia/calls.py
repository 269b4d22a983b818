"""Features as the calls that POST /api/feature/upload-batch takes, within its limits (`layout.py`).

Of an explanation only the method is sent: its route sets a field `modelName`, and the column has another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from autointerp.neuronpedia.exported import Exported
from autointerp.neuronpedia.layout import (
    MOST_CHARACTERS,
    MOST_FEATURES_A_CALL,
    MOST_INDEX,
    MOST_LOGITS,
    MOST_QUANTILE,
    MOST_TOKENS,
    stored,
)
from autointerp.neuronpedia.naming import Names
from autointerp.types import Json, digest

_DOTS: Final = "…"


@dataclass(slots=True)
class Cuts:
    """What could not go out as it is."""

    n_without_activations: int = 0
    """Features, which the server would refuse."""
    n_explanations_cut: int = 0
    n_windows_cut: int = 0
    n_tokens_joined: int = 0
    """Tokens without a text of their own, which stand for part of a character: joined to the one before."""


@dataclass(frozen=True, slots=True)
class Call:
    """Up to 128 features."""

    body: Json
    keys: tuple[str, ...]
    """Digest of each feature as it is sent."""

    @property
    def indices(self) -> list[int]:
        return [feature["index"] for feature in self.body["features"]]

    @property
    def n_explanations(self) -> int:
        return sum(len(feature.get("explanations", ())) for feature in self.body["features"])

    @property
    def n_activations(self) -> int:
        return sum(len(feature["activations"]) for feature in self.body["features"])


def body_of(feature: Exported, cuts: Cuts) -> Json | None:
    """None where the server takes no such feature."""
    activations = [made for one in feature.activations if (made := _activation(one, cuts)) is not None]
    if not activations or feature.index > MOST_INDEX:
        cuts.n_without_activations += 1
        return None
    body: Json = {"index": feature.index, "activations": activations}
    density = feature.neuron.get("frac_nonzero")
    if density is not None and 0 <= density <= 1:
        body["density"] = density
    for name, side in (("topLogits", "pos"), ("bottomLogits", "neg")):
        texts, values = (feature.neuron.get(f"{side}_{kind}") or [] for kind in ("str", "values"))
        logits = [{"token": stored(t), "value": v} for t, v in zip(texts, values, strict=True) if t]
        if logits:
            body[name] = logits[:MOST_LOGITS]
    if explanations := [
        _explanation(one, cuts) for one in feature.explanations if one["description"].strip()
    ]:
        body["explanations"] = explanations
    return body


def _explanation(row: Json, cuts: Cuts) -> Json:
    text: str = stored(row["description"])
    if _length(text) > MOST_CHARACTERS:
        cuts.n_explanations_cut += 1
        text = _at_a_word(text)
    kind = row.get("typeName")
    return {"text": text} | ({"methodName": kind.lower()} if kind else {})


def _length(text: str) -> int:
    """As the server counts: UTF-16 units."""
    return len(text.encode("utf-16-le")) // 2


def _at_a_word(text: str) -> str:
    """The longest beginning that fits with dots behind it, whole words where there are any."""
    while _length(text) > MOST_CHARACTERS - len(_DOTS):
        text = text[: MOST_CHARACTERS - len(_DOTS)] if len(text) > MOST_CHARACTERS else text[:-1]
    words, space, _ = text.rpartition(" ")
    return (words if space and words.strip() else text).rstrip() + _DOTS


def _activation(row: Json, cuts: Cuts) -> Json | None:
    """None where no token has a text."""
    tokens: list[str] = []
    values: list[float] = []
    for text, value in zip(row["tokens"], row["values"], strict=True):
        if text:
            tokens.append(stored(text))
            values.append(value)
        elif tokens:
            values[-1] = max(values[-1], value)
            cuts.n_tokens_joined += 1
    if not tokens:
        return None
    if len(tokens) > MOST_TOKENS:
        cuts.n_windows_cut += 1
        begin = min(max(0, values.index(max(values)) - MOST_TOKENS // 2), len(tokens) - MOST_TOKENS)
        tokens, values = tokens[begin : begin + MOST_TOKENS], values[begin : begin + MOST_TOKENS]
    made: Json = {"tokens": tokens, "values": values}
    low, high, share = (row.get(name) for name in ("binMin", "binMax", "binContains"))
    if low is None or high is None or share is None or not 0 <= share <= 1 or max(low, high) > MOST_QUANTILE:
        return made  # the strongest windows are of no interval
    return made | {"quantileMin": low, "quantileMax": high, "quantileFraction": share}


def key_of(names: Names, body: Json) -> str:
    """What a feature is called that was sent as it is now."""
    return digest(names.model, names.source, body)


def calls_of(names: Names, bodies: Iterable[Json]) -> Iterator[Call]:
    """In their order. Memory: a call."""
    waiting: list[Json] = []
    for body in bodies:
        waiting.append(body)
        if len(waiting) == MOST_FEATURES_A_CALL:
            yield _call(names, waiting)
            waiting = []
    if waiting:
        yield _call(names, waiting)


def _call(names: Names, bodies: list[Json]) -> Call:
    body: dict[str, Any] = {"modelId": names.model, "source": names.source, "features": bodies}
    return Call(body, tuple(key_of(names, one) for one in bodies))
