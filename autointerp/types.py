"""Names of things, windows, and the records of sampling.

Pure data: frozen dataclasses, no torch, no files. Lists inside records are columns (parallel lists), so
that a feature's hundred trials are a handful of JSON arrays.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import orjson

from autointerp.errors import FeatureError

Json = dict[str, Any]
"""A JSON object, as orjson reads it."""


def digest(*parts: Any) -> str:
    """32 hex characters that name these parts: blake2b over their JSON with sorted keys.

    Dataclasses, lists, dicts, strings, numbers, None and bytes (as hex) are taken. Equal content gives
    equal digests in every process and on every machine.
    """
    text = orjson.dumps(
        parts,
        default=_hex_of_bytes,
        option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS,
    )
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _hex_of_bytes(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no place in a digest")


Pole = Literal["", "-"]

_FEATURE_ID = re.compile(r"(?P<dictionary>.+)/(?P<index>\d+)(?P<pole>-?)")


@dataclass(frozen=True, slots=True, order=True)
class FeatureId:
    """One feature of one dictionary, written `<dictionary>/<index>`, `-` behind it for a negative pole."""

    dictionary: str
    index: int
    pole: Pole = ""

    def __str__(self) -> str:
        return f"{self.dictionary}/{self.index}{self.pole}"

    @classmethod
    def of_column(cls, dictionary: str, column: int, n_poles: int) -> FeatureId:
        """Inverse of `column`."""
        index, pole = divmod(column, n_poles)
        return cls(dictionary, index, "-" if pole else "")

    def column(self, n_poles: int) -> int:
        """Where its firings lie: the index, or in a signed dictionary (two poles a feature) 2 * index, and
        one more for the negative pole. Columns ascend as feature ids do."""
        return self.index * n_poles + (self.pole == "-")

    @classmethod
    def parse(cls, text: str) -> FeatureId:
        """Inverse of `str`. Raises FeatureError where the text is not a feature id."""
        match = _FEATURE_ID.fullmatch(text)
        if match is None:
            raise FeatureError(f"'{text}' is not a feature id. One looks like 'layers.12/4711'.")
        return cls(match["dictionary"], int(match["index"]), cast(Pole, match["pole"]))


Point = Literal[
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_in",
    "attn_in_normalized",
    "z",
    "attn_out",
    "mlp_in",
    "mlp_in_normalized",
    "neurons",
    "experts",
    "mlp_out",
    "attn_raw",
    "mlp_raw",
]
"""Where in a layer. `resid_...`: the residual stream before, between attention and MLP, and after the layer.
`..._in`: what attention and MLP read, behind their norm; `..._in_normalized`: behind the norm, but before
its gain (and bias). `z`: the attention heads' outputs one behind the other, [n_heads * d_head], before the
output projection. `neurons`: the hidden neurons of a dense MLP. `experts`: of a mixture of experts, what
each one's output is multiplied by, [n_experts], 0 for those not chosen. `..._out`: what attention and MLP
add to the stream; where a norm comes between, `..._raw` is what they give to it."""

_SITE_SUFFIX: dict[Point, str] = {
    "resid_post": "",
    "resid_pre": ".in",
    "resid_mid": ".mid",
    "attn_in": ".attn_in",
    "attn_in_normalized": ".attn_in_normalized",
    "z": ".z",
    "attn_out": ".attn",
    "mlp_in": ".mlp_in",
    "mlp_in_normalized": ".mlp_in_normalized",
    "neurons": ".neurons",
    "experts": ".experts",
    "mlp_out": ".mlp",
    "attn_raw": ".attn_raw",
    "mlp_raw": ".mlp_raw",
}


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A place in the subject model whose activations a dictionary reads."""

    point: Point
    layer: int

    def __str__(self) -> str:
        """The canonical short name, which is also the default name of a dictionary: `layers.12`,
        `layers.12.mlp`, `layers.12.z`, `layers.12.mlp_in_normalized`, ..."""
        return f"layers.{self.layer}{_SITE_SUFFIX[self.point]}"


Stratum = Literal["random", "same_token", "neighbour", "same_document", "density", "graded", "embedding"]
"""How a window that an active one is set against was chosen. Silent ones: `random`, any place of the same
position and length; `same_token`, around one of the feature's top tokens; `neighbour`, where a feature alike
is active; `same_document`, in a document where the feature fires elsewhere; `density`, where some feature of
similar density is active; `embedding`, whose text is nearest to that of the active ones. `graded`: of the
lower half of all windows by maximum, silent or not. A new one goes to the end: stores keep the number."""

Contrast = Literal["silent", "graded"]
"""What the active windows of a feature are set against: windows without any firing, or, for features that
fire nearly everywhere, the top decile of all windows against the lower half."""


class Window(NamedTuple):
    """A run of T consecutive units (tokens) of one document, with one feature's activations on them.

    A tuple, because a stage reads some hundred a feature: a frozen dataclass takes four times as long to make.
    """

    document: str
    """Hex id of the document: 16 characters of the blake2b hash of its text."""
    position: int
    """Position of the first unit in its document, in tokens."""
    token_ids: tuple[int, ...]
    """[T]"""
    texts: tuple[str, ...]
    """[T], what each unit adds to the text; joined they are the window's text. A character that several
    tokens share belongs to the first of them, the others are empty."""
    activations: tuple[float, ...]
    """[T], raw, 0.0 where the feature is silent."""
    band: int | None = None
    """Decile of the window's maximum among the feature's active windows, 0 strongest; None if silent."""
    stratum: Stratum | None = None
    """How a window that active ones are set against was chosen; None if active."""
    source: Literal["corpus"] = "corpus"

    @property
    def maximum(self) -> float:
        return max(self.activations, default=0.0)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class TokenEffects:
    """Tokens and what a direction does to their logits, above the mean over the vocabulary: columns, the
    strongest first."""

    ids: tuple[int, ...]
    effects: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Directions:
    """What a feature's weights alone say of it. Effects are those of its decoder row as it is stored."""

    neighbours: tuple[int, ...]
    """Features of the same dictionary with the most similar decoder rows, the nearest first; empty for a
    row of zeros."""
    similarity: tuple[float, ...]
    """Cosine with each of them."""
    promoted: TokenEffects | None
    suppressed: TokenEffects | None
    """None where the dictionary doesn't write to the residual stream, or the model's final norm and
    unembedding are not known."""


SampleStatus = Literal["full", "small", "too_few", "dense", "dead"]
"""`full` and `small` are explained and scored. `small`: fewer active windows than the full tier asks for,
so smaller test sets and wider intervals. `too_few`: not enough windows or documents. `dense`: fires so
often that nothing is left to set its active windows against. `dead`: never fires on this corpus."""

EXPLAINABLE: frozenset[SampleStatus] = frozenset({"full", "small"})


@dataclass(frozen=True, slots=True)
class WindowRefs:
    """Which windows a split holds: columns, one entry a window, active ones first. The last two columns are
    run-length coded."""

    rows: list[int]
    """Token row, counted over the whole cache."""
    starts: list[int]
    """First position of the window in its row."""
    bands: list[tuple[int, int]]
    """(band, how many) of active windows, 0 strongest."""
    strata: list[tuple[Stratum, int]]
    """(stratum, how many) of the windows behind them. Where fewer were found than asked for, this says so."""

    @property
    def n_active(self) -> int:
        return sum(n for _, n in self.bands)


@dataclass(frozen=True, slots=True)
class Assumed:
    """What a feature's silent windows are worth, where its windows are those that somebody published: it is known on
    these alone, and others' windows are silent only by chance."""

    n_known: int
    """Silent windows on which the feature is known."""
    n_assumed: int
    """Windows of other features that are taken as silent."""
    p_silent: float | None
    """Probability that a random window is silent: that of none of its tokens firing. None where nobody says how often
    the feature fires; then, and where it is small, none are taken of others."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the sample stage knows of a feature. Its windows lie in the window store."""

    feature: str
    status: SampleStatus
    contrast: Contrast
    n_tokens: int
    """Tokens of the corpus the feature was looked at on (masked ones not counted)."""
    n_fired: int
    """Tokens on which it fires."""
    n_rows: int
    """Rows in which it fires."""
    n_documents: int
    """Documents in which it fires."""
    n_windows: int
    """Active windows to choose from; an estimate where the cache kept only some of its rows."""
    maximum: float
    mean: float
    """Largest and mean activation over the tokens on which it fires; 0.0 if dead."""
    histogram: dict[str, int]
    """Firings by bin of `activations/histogram.py`, empty bins left out."""
    top_tokens: list[tuple[int, int]]
    """(token id, firings on it), the most frequent first, at most 10."""
    rates: list[float | None]
    """Share of tokens on which it fires, by position in the row: 0 to 1, 2 to 3, 4 to 7, ..., 128 and above.
    None where the corpus has no token there."""
    donors: list[int]
    """Features alike, whose windows its `neighbour` windows are from."""
    shown: WindowRefs
    select: WindowRefs
    heldout: WindowRefs
    assumed: Assumed | None = None
    """None where silence is known and windows are drawn from all that there are; left out of records then. Else
    counts of windows, rows and documents are of what was published, and shares of tokens too."""

    @property
    def density(self) -> float:
        """Share of tokens on which the feature fires."""
        return self.n_fired / self.n_tokens if self.n_tokens else 0.0
