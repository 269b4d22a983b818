"""What a scorer returns: trials, as columns. Every number of a score is a pure function of them.

    Trials        a yes or no a window                                     detection, fuzzing
    InBlocks      the same, asked block by block until a test has decided  both, `sequential`
    Ranked        a number a window of which only the order counts         embedding
    Choices       one of several windows picked                            intruder
    Predictions   an activation a token                                    simulation
    Responses     texts written for the explanation, active or not         sensitivity
    Differences   what steering does to the explanation's probability      intervention

In each all columns are parallel lists of one length. `record` and `of` take them to a journal's record and
back; the `kind` in it says which they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from autointerp.errors import JournalCorrupt
from autointerp.sequential import Look, Sequential
from autointerp.types import Json, Stratum, Window


@dataclass(frozen=True, slots=True)
class Trials:
    """Single yes-or-no questions put to a judge, and the answers."""

    window: list[int] = field(default_factory=list[int])
    """Index into the held-out windows, the active ones first, then the silent ones."""
    truth: list[bool] = field(default_factory=list[bool])
    """What the right answer is."""
    answer: list[bool | None] = field(default_factory=list["bool | None"])
    """What the judge said; None where no answer could be read, also after one more try."""
    probability: list[float | None] = field(default_factory=list["float | None"])
    """Raw P(yes) where the backend gives it."""
    band: list[int | None] = field(default_factory=list["int | None"])
    """Activation decile of an active window, 0 strongest."""
    stratum: list[Stratum | None] = field(default_factory=list["Stratum | None"])
    """How a silent window was chosen."""
    marks: list[list[int]] = field(default_factory=list[list[int]])
    """Positions in the window that were marked for the judge; empty lists where nothing is marked."""
    offset: list[int | None] = field(default_factory=list["int | None"])
    """Position in the window of its strongest token; None if silent."""
    document: list[str] = field(default_factory=list[str])
    """First 8 hex characters of the document's id. Windows of one document are not independent."""
    maximum: list[float] = field(default_factory=list[float])
    """Largest activation, to 4 digits; 0.0 if silent."""
    length: list[int] = field(default_factory=list[int])
    """Tokens of the window."""

    kind: ClassVar[str] = "judged"

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True, slots=True)
class InBlocks(Trials):
    """Trials of a sequential test. Two fields are no columns."""

    look: list[int | None] = field(default_factory=list["int | None"])
    """At which look of the test the question was new, from 0. None of windows in no look: those chosen to be hard,
    and those beyond the last."""
    rule: Sequential = field(default_factory=Sequential)
    in_panel: bool = False
    """Whether everything was asked, whatever the test said."""

    kind: ClassVar[str] = "judged in blocks"

    def looks(self) -> list[Look]:
        """What was known at each, in their order."""
        n_looks = 1 + max((look for look in self.look if look is not None), default=-1)
        counts = [[0, 0, 0, 0] for _ in range(n_looks)]
        for look, truth, answer in zip(self.look, self.truth, self.answer, strict=True):
            if look is not None and answer is not None:
                for count in counts[look:]:
                    count[0 if truth else 2] += 1
                    count[1 if truth else 3] += answer == truth
        return [Look(*count) for count in counts]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One number a window, larger where the explanation fits better."""

    window: list[int] = field(default_factory=list[int])
    truth: list[bool] = field(default_factory=list[bool])
    value: list[float | None] = field(default_factory=list["float | None"])
    """None where there is none."""
    band: list[int | None] = field(default_factory=list["int | None"])
    stratum: list[Stratum | None] = field(default_factory=list["Stratum | None"])
    document: list[str] = field(default_factory=list[str])
    maximum: list[float] = field(default_factory=list[float])
    offset: list[int | None] = field(default_factory=list["int | None"])

    kind: ClassVar[str] = "ranked"

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True, slots=True)
class Choices:
    """One of several windows picked, of which one is right."""

    right: list[int] = field(default_factory=list[int])
    """Place of the right one among those offered, from 0."""
    chosen: list[int | None] = field(default_factory=list["int | None"])
    n_options: list[int] = field(default_factory=list[int])
    band: list[int | None] = field(default_factory=list["int | None"])
    """Decile of the active windows among them."""
    documents: list[list[str]] = field(default_factory=list[list[str]])
    """Of all windows offered."""

    kind: ClassVar[str] = "chosen"

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Windows of T tokens each, with what was predicted of every token."""

    predicted: list[list[float | None]] = field(default_factory=list["list[float | None]"])
    """[T]; None where nothing could be read."""
    actual: list[list[float]] = field(default_factory=list[list[float]])
    """[T], to 4 digits."""
    band: list[int | None] = field(default_factory=list["int | None"])
    stratum: list[Stratum | None] = field(default_factory=list["Stratum | None"])
    document: list[str] = field(default_factory=list[str])

    kind: ClassVar[str] = "predicted"

    def __len__(self) -> int:
        return len(self.predicted)


@dataclass(frozen=True, slots=True)
class Responses:
    """Texts written for the explanation, and what the subject does on them."""

    text: list[str] = field(default_factory=list[str])
    maximum: list[float] = field(default_factory=list[float])
    """Largest activation of the feature on the text."""
    active: list[bool | None] = field(default_factory=list["bool | None"])
    """Whether that is above the threshold; None where the text could not be used."""
    threshold: list[float] = field(default_factory=list[float])

    kind: ClassVar[str] = "responded"

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True)
class Differences:
    """What steering does to the probability of an explanation: an entry a (prompt, target KL, arm)."""

    arm: list[str] = field(default_factory=list[str])
    """`feature`: its own direction and explanation. Controls: `random` and `other` directions, `shuffled`, ..."""
    prompt: list[int] = field(default_factory=list[int])
    """Index of the held-out prompt."""
    document: list[str] = field(default_factory=list[str])
    target_kl: list[float] = field(default_factory=list[float])
    kl: list[float | None] = field(default_factory=list["float | None"])
    """What was achieved, in nats; None where no strength was found for the target."""
    logp_steered: list[float | None] = field(default_factory=list["float | None"])
    """Log probability of the explanation behind the steered text, summed over its tokens, in nats."""
    logp_clean: list[float | None] = field(default_factory=list["float | None"])
    n_tokens: list[int] = field(default_factory=list[int])
    """Tokens of the explanation."""

    kind: ClassVar[str] = "steered"

    def __len__(self) -> int:
        return len(self.arm)


AnyTrials = Trials | InBlocks | Ranked | Choices | Predictions | Responses | Differences

_KINDS: Final[dict[str, type[AnyTrials]]] = {
    cls.kind: cls for cls in (Trials, InBlocks, Ranked, Choices, Predictions, Responses, Differences)
}
_COLUMNS: Final = {kind: [column.name for column in dataclasses.fields(cls)] for kind, cls in _KINDS.items()}


NO_COLUMNS: Final = ("rule", "in_panel")
"""Of `InBlocks`."""


def record(trials: AnyTrials) -> Json:
    """What a journal keeps of them; the columns are not copied."""
    found: Json = {"kind": trials.kind} | {name: getattr(trials, name) for name in _COLUMNS[trials.kind]}
    if isinstance(trials, InBlocks):
        found["rule"] = dataclasses.asdict(trials.rule)
    return found


def of(record: Json) -> AnyTrials:
    """Inverse of `record`. Raises JournalCorrupt where it is none."""
    kind = record.get("kind")
    if kind not in _KINDS:
        raise JournalCorrupt(
            f"a record holds trials of kind {kind!r}; this version of autointerp reads {', '.join(_KINDS)}. "
            f"Score anew with this version, or read it with the one that wrote it."
        )
    names = _COLUMNS[kind]
    if record.keys() != {"kind", *names}:
        raise JournalCorrupt(
            f"trials of kind '{kind}' have columns {', '.join(names)}; a record has "
            f"{', '.join(name for name in record if name != 'kind')}. Score anew with this version."
        )
    cls: Any = _KINDS[kind]
    if cls is InBlocks:
        record = record | {"rule": Sequential.of(record["rule"])}
    return cls(*(record[name] for name in names))


# --- of windows ------------------------------------------------------------------------------------------


def bands(windows: Sequence[Window]) -> list[int | None]:
    return [window.band for window in windows]


def strata(windows: Sequence[Window]) -> list[Stratum | None]:
    return [window.stratum for window in windows]


def documents(windows: Sequence[Window]) -> list[str]:
    return [window.document[:8] for window in windows]


def maxima(windows: Sequence[Window]) -> list[float]:
    return [to_4_digits(window.maximum) for window in windows]


def offsets(windows: Sequence[Window]) -> list[int | None]:
    """Position of the strongest token; of equal ones the first."""
    found: list[int | None] = []
    for window in windows:
        maximum = window.maximum
        found.append(window.activations.index(maximum) if maximum > 0 else None)
    return found


def lengths(windows: Sequence[Window]) -> list[int]:
    return [len(window.texts) for window in windows]


def to_4_digits(value: float) -> float:
    """Activations are float32 at best: more digits would be noise, and weigh on every record."""
    return float(f"{value:.4g}")
