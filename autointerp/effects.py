"""What pushing the model along a feature's direction does: the records of the intervene stage.

Columns of token ids, not texts: whoever reads them has the run's vocabulary. Texts are continuations of prompts,
and a prompt is the beginning of an active window, named by its place among the active windows of its split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from autointerp.types import Json, TokenEffects


@dataclass(frozen=True, slots=True)
class Intervention:
    """The recipe's section: how features are pushed, where an explainer or scorer needs to know what that does
    (arXiv 2410.13928, section 4, has these targets, 10 prompts to explain from, 30 to test on, and 8 tokens)."""

    targets: tuple[float, ...] = (0.1, 0.33, 1.0, 3.0)
    """Nats: strengths are chosen so that the mean over prompts of KL(clean || pushed) of the next token comes
    within 10% of each."""
    n_shown: int = 10
    n_select: int = 10
    n_heldout: int = 30
    """Prompts of each split."""
    minimum: int = 5
    """With fewer prompts in a split nothing is recorded of a feature."""
    shortest: int = 4
    longest: int = 64
    """Tokens of a prompt, without BOS: those right before the feature first fires in an active window."""
    n_tokens: int = 8
    """Tokens of a continuation."""
    n_changes: int = 10
    """Tokens kept of those that are raised most, and of those lowered most."""
    weakest: float = 0.001
    strongest: float = 100.0
    """Norm of what is added, over the median norm of the activations it is added to."""
    n_strengths: int = 11
    """Of the grid between, on which brackets are looked for: half a decade each."""
    ablate: bool = False
    """Also take the feature's own contribution away, on held-out windows cut behind its first firing."""
    always: bool = False
    """Also where nothing in the recipe needs it."""

    def faults(self) -> Iterator[str]:
        """What types alone don't say, with the field's name."""
        if not self.targets or list(self.targets) != sorted(set(self.targets)) or self.targets[0] <= 0:
            yield f"targets: ascending numbers above 0 (found {list(self.targets)})"
        least = {"n_shown": 1, "n_select": 1, "n_heldout": 1, "minimum": 1, "shortest": 1, "n_tokens": 1}
        for name, minimum in (least | {"n_changes": 1, "n_strengths": 2}).items():
            if getattr(self, name) < minimum:
                yield f"{name}: at least {minimum} (found {getattr(self, name)})"
        if self.longest < self.shortest:
            yield f"longest: at least shortest, which is {self.shortest} (found {self.longest})"
        if not 0 < self.weakest < self.strongest:
            yield f"strongest: above weakest, which is above 0 (found {self.weakest:g} and {self.strongest:g})"


Arm = Literal["feature", "random", "other", "ablated"]
"""What was added: the feature's decoder row; a random direction of the same norm; the decoder row of another
feature, drawn from the whole dictionary. `ablated`: the feature's own contribution was taken away instead."""

SearchStatus = Literal["ok", "no_bracket", "not_reached"]
"""`no_bracket`: within the range of strengths the KL never crosses the target from below. `not_reached`: it
does, but too steeply for the numbers of this model to come near enough."""

EffectsStatus = Literal["ok", "too_few_prompts", "no_direction"]
"""`too_few_prompts`: hardly a window has enough tokens before the feature first fires. `no_direction`: its
decoder row is zero."""


@dataclass(frozen=True, slots=True)
class Steered:
    """What one push does to the prompts of a split."""

    arm: Arm
    target_kl: float | None
    """Nats; None where there is no target (`ablated`)."""
    status: SearchStatus
    strength: float
    """What the direction, in the units of the decoder row, was multiplied by; nearest to the target where the
    status is not ok."""
    kl: float
    """Mean over prompts of KL(clean || steered) of the token behind the prompt, nats; achieved at `strength`."""
    raised: TokenEffects
    """Tokens by the mean over prompts of the change of their log-probability behind the prompt, nats."""
    lowered: TokenEffects
    texts: list[list[int]]
    """Continuation of each prompt; empty where the status is not ok."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The prompts of one split, and all that was done to them."""

    windows: list[int]
    """Places among the active windows of the split."""
    begins: list[int]
    ends: list[int]
    """Which of a window's tokens are the prompt: the one in front of `end` is the last."""
    clean: list[list[int]]
    """Continuation of each prompt without a push, by the same random numbers."""
    steered: list[Steered]

    def of(self, arm: Arm) -> list[Steered]:
        """What was recorded of an arm, by ascending target."""
        return [one for one in self.steered if one.arm == arm]


@dataclass(frozen=True, slots=True)
class Effects:
    """What the intervene stage knows of a feature. An explainer sees `shown`, choosing between explanations
    `select`, a test `heldout`, each of prompts of its own split; scenes are None unless the status is ok."""

    status: EffectsStatus
    other: str | None = None
    """The feature whose row is a control."""
    shown: Scene | None = None
    select: Scene | None = None
    heldout: Scene | None = None
    ablated: Scene | None = None
    """Of held-out windows, cut behind the first token on which the feature fires."""


def read_effects(record: Json) -> Effects:
    """A journal's record -> what it says."""
    scenes = {name: _scene(record.get(name)) for name in ("shown", "select", "heldout", "ablated")}
    return Effects(cast(EffectsStatus, record["status"]), record.get("other"), **scenes)


def _scene(record: Json | None) -> Scene | None:
    if record is None:
        return None
    steered = [
        Steered(**(one | {name: _tokens(one[name]) for name in ("raised", "lowered")}))
        for one in record["steered"]
    ]
    places = (record[name] for name in ("windows", "begins", "ends"))
    return Scene(*places, record["clean"], steered)


def _tokens(record: Json) -> TokenEffects:
    return TokenEffects(tuple(record["ids"]), tuple(record["effects"]))
