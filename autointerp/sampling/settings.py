"""The recipe's `sampling` section."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

WindowKind = Literal["anchored", "aligned", "centred"]
Pool = Literal["split", "shared", "apart"]

MOST_BANDS: Final = 100


@dataclass(frozen=True, slots=True)
class Rule:
    """How a split chooses among a feature's active windows."""

    n: int
    n_top: int
    """The strongest."""
    others: Literal["quantiles", "random", "importance"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Which windows are cut and how many of each kind a feature gets."""

    window: WindowKind = "anchored"
    """`anchored`: a firing token stands at a hashed place in its window, with at least `context_before`
    tokens before it wherever its row has them. `aligned`: fixed blocks (arXiv 2410.13928). `centred`: the
    strongest token of a block stands in the middle of its window, and tokens too near an end of their row for that
    don't count (SAEBench)."""
    width: int = 32
    """Tokens a window."""
    context_before: int = 12
    """Of `anchored` windows."""
    n_bands: int = 10
    """Bands of equal size by window maximum; with 10, deciles."""
    shown: Literal["quantiles", "top", "mix", "random", "importance"] = "quantiles"
    """Which active windows the explainer sees: n_shown / n_bands from each band; the strongest; half the
    strongest and half by band; any; any, with probability proportional to the window's maximum to the power
    `importance_power`."""
    n_shown: int = 40
    """Active windows for the explainer."""
    n_shown_top: int = 0
    """So many of them are the strongest, the others as `shown` says."""
    n_shown_silent: int = 40
    n_shown_hard: int | None = None
    """Further silent windows for explainers that contrast: half of them with one of the feature's top tokens, half
    where a feature alike is active, from documents of what is shown. None: 20 where an explainer of a new run needs
    them, else none; each adds about 1/250 to what a feature's record and windows take."""
    n_select: int = 20
    """Active windows for choosing between explanations, and as many silent ones."""
    n_heldout: int = 50
    """Active windows for scorers, n_heldout / n_bands from each band."""
    heldout: Literal["quantiles", "importance"] = "quantiles"
    """Which active windows scorers test: as many from each band; or any, with probability as for `shown`. A score
    on the latter says little of the weak windows, which are most."""
    importance_power: float = 1.0
    """2 in SAEBench."""
    n_heldout_top: int = 0
    """So many of them are the strongest, the others as `heldout` says."""
    n_heldout_silent: int = 50
    """Silent windows for scorers, drawn at random: what the headline is measured on."""
    n_same_token: int = 20
    """Silent windows for scorers that hold one of the feature's top tokens."""
    n_neighbour: int = 20
    """Silent windows for scorers in which a feature alike is active: one with a similar decoder or encoder
    row, or one that often fires together with this one."""
    n_same_document: int = 0
    """Silent windows for scorers from documents in which the feature fires elsewhere."""
    n_density: int = 0
    """Silent windows for scorers in which some feature of similar density is active."""
    n_embedding: int = 0
    """Silent windows for scorers whose text is nearest to that of the feature's active ones, by the subject
    model's own token embeddings."""
    active_above: int | float | str = 0
    """A token counts as active above this: 0, `10% of maximum` (of the feature), or `quantile 0.9` (of its
    firing values). A window that fires only below it is neither active nor silent."""
    contrast: Literal["auto", "silent", "graded"] = "auto"
    """`silent`: active windows against windows without any firing. `graded`: windows whose maximum is in the
    top decile of all windows against the lower half of them. `auto`: graded for features that fire on more
    than `graded_from` of all tokens."""
    graded_from: float = 0.03
    shares: tuple[float, float, float] = (0.4, 0.2, 0.4)
    """Shares of documents that go to shown, select and heldout."""
    minimum_full: int = 200
    """From so many active windows on a feature's status is `full` (the paper's threshold)."""
    minimum: int = 40
    """With fewer active windows the status is `too_few`, and the feature is not explained."""
    minimum_documents: int = 6
    minimum_split: int = 5
    """A split with fewer active windows than this is no test: the status is `too_few`; with fewer silent
    ones it is `dense`."""
    overlap: int = 13
    """No run of so many tokens stands both in what is shown or selected on and in what is held out."""
    pool: Pool = "split"
    """Where windows come from. `split`: what is shown, selected on and held out is of different documents.
    Only a recipe marked `replica` may have another (`sampling/pools.py`). `shared`: shown and tested windows are
    drawn from all, each by the same stream of random numbers, so that some tested windows were shown
    (EleutherAI/delphi). `apart`: drawn from all, but no window twice (SAEBench)."""
    silence: Literal["known", "assumed"] = "known"
    """`assumed`: windows anywhere count as silent, whatever fires in them (SAEBench); only in a `replica`."""

    @property
    def shown_rule(self) -> Rule:
        """How the explainer's windows are chosen."""
        match self.shown:
            case "top":
                return Rule(self.n_shown, self.n_shown, "quantiles")
            case "mix":
                return Rule(self.n_shown, max(self.n_shown // 2, self.n_shown_top), "quantiles")
            case others:
                return Rule(self.n_shown, self.n_shown_top, others)

    @property
    def heldout_rule(self) -> Rule:
        """How the scorers' windows are chosen."""
        return Rule(self.n_heldout, self.n_heldout_top, self.heldout)

    @property
    def needs_codes(self) -> bool:
        """Whether any window is looked for where another feature fires."""
        return self.n_neighbour + self.n_density + self.shown_hard[1] > 0

    @property
    def shown_hard(self) -> tuple[int, int]:
        """Of the hard windows shown, how many by token and how many by a feature alike."""
        n = self.n_shown_hard or 0
        return n - n // 2, n // 2

    @property
    def n_hard(self) -> int:
        """Held-out silent windows beside the headline."""
        by_feature = self.n_same_token + self.n_neighbour + self.n_density
        return by_feature + self.n_same_document + self.n_embedding


@dataclass(frozen=True, slots=True)
class ActiveAbove:
    """`active_above`, read. Of the two numbers at most one is above 0."""

    of_maximum: float = 0.0
    """Share of the feature's largest activation."""
    quantile: float = 0.0
    """Of the feature's firing values."""


_OF_MAXIMUM: Final = re.compile(r"(\d+(?:\.\d+)?) ?% of maximum")
_QUANTILE: Final = re.compile(r"quantile (0?\.\d+)")


def read_active_above(value: float | str) -> ActiveAbove | None:
    """None where it is none of `0`, `10% of maximum`, `quantile 0.9`."""
    text = str(value).strip()
    if text in ("0", "0.0"):
        return ActiveAbove()
    if match := _OF_MAXIMUM.fullmatch(text):
        share = float(match[1]) / 100
        return ActiveAbove(of_maximum=share) if share < 1 else None
    if match := _QUANTILE.fullmatch(text):
        return ActiveAbove(quantile=float(match[1]))
    return None


ADDED: Final = {
    "n_embedding": 0, "n_shown_top": 0, "heldout": "quantiles", "n_heldout_top": 0, "pool": "split",
    "silence": "known", "n_shown_hard": 0, "importance_power": 1.0,
}  # fmt: skip
"""Settings that older samples were made without, as they were then: where they are so, samples are the same."""


def digested(sampling: SamplingSettings) -> dict[str, Any]:
    """What samples are made from."""
    settings = dataclasses.asdict(sampling)
    if settings["n_shown_hard"] is None:
        settings["n_shown_hard"] = 0
    return {name: value for name, value in settings.items() if name not in ADDED or value != ADDED[name]}


def faults(sampling: SamplingSettings, *, is_replica: bool) -> Iterator[str]:
    """What is wrong with a `sampling` section, beyond what types say."""
    yield from _replica_faults(sampling, is_replica=is_replica)
    least = {"width": 2, "n_bands": 1, "n_shown": 1, "n_heldout": 1, "overlap": 2, "minimum": 1}
    least |= dict.fromkeys(
        ("n_shown_silent", "n_select", "n_heldout_silent", "n_same_token", "n_neighbour", "n_same_document"),
        0,
    )
    least |= dict.fromkeys(("n_density", "n_embedding", "minimum_split", "minimum_documents"), 0)
    if (n_hard := sampling.n_shown_hard) is not None and n_hard < 0:
        yield f"sampling.n_shown_hard: at least 0 (found {n_hard})"
    least |= dict.fromkeys(("n_shown_top", "n_heldout_top"), 0)
    for name, of in (("n_shown_top", "n_shown"), ("n_heldout_top", "n_heldout")):
        if getattr(sampling, name) > getattr(sampling, of):
            yield f"sampling.{name}: at most {of}, {getattr(sampling, of)} (found {getattr(sampling, name)})"
    for name, minimum in least.items():
        if getattr(sampling, name) < minimum:
            yield f"sampling.{name}: at least {minimum} (found {getattr(sampling, name)})"
    if sampling.n_bands > MOST_BANDS:
        yield f"sampling.n_bands: at most {MOST_BANDS} (found {sampling.n_bands})"
    if sampling.overlap > sampling.width:
        yield f"sampling.overlap: at most the width, {sampling.width} (found {sampling.overlap})"
    if not 0 <= sampling.context_before < sampling.width:
        yield f"sampling.context_before: from 0 to width - 1 (found {sampling.context_before})"
    if min(sampling.shares) <= 0:
        yield f"sampling.shares: all above 0 (found {list(sampling.shares)})"
    if not 0 < sampling.importance_power <= 4:
        yield f"sampling.importance_power: above 0, at most 4 (found {sampling.importance_power:g})"
    if not 0 <= sampling.graded_from <= 1:
        yield f"sampling.graded_from: from 0 to 1 (found {sampling.graded_from})"
    if read_active_above(sampling.active_above) is None:
        yield (
            f"sampling.active_above: 0, '10% of maximum' or 'quantile 0.9' (found {sampling.active_above!r})"
        )


def _replica_faults(sampling: SamplingSettings, *, is_replica: bool) -> Iterator[str]:
    """What breaks the promises that other recipes keep, and what a pool of all windows can't do."""
    if not is_replica:
        for name in ("pool", "silence"):
            if getattr(sampling, name) != ADDED[name]:
                yield (
                    f"sampling.{name}: {getattr(sampling, name)} lets the test see what it must not; it is there to "
                    f"reproduce a published protocol, and only a recipe that says so may have it: replica: NAME "
                    f"(else {ADDED[name]})"
                )
    if sampling.pool != "split" and sampling.n_select:
        yield f"sampling.n_select: 0 where pool is {sampling.pool} (found {sampling.n_select})"
    if sampling.pool != "split" and sampling.n_hard:
        yield f"sampling: no hard windows where pool is {sampling.pool} (found {sampling.n_hard}); set them to 0"
    rules = (sampling.shown_rule.others, sampling.heldout_rule.others)
    if sampling.pool == "apart" and rules != ("importance", "importance"):
        yield f"sampling.pool: apart draws both by importance (found shown {rules[0]}, heldout {rules[1]})"
    if sampling.pool == "shared" and (
        rules[1] != "quantiles" or rules[0] == "importance" or sampling.n_shown_top or sampling.n_heldout_top
    ):
        yield "sampling.pool: shared goes with shown quantiles or random, heldout quantiles, and none of the top"
