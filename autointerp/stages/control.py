"""Control: what explanations score that should not fit, or that nobody had to think about (`panel.py`).

Behind the scores, on the panel's features alone, so that it costs the same however large a run is. A feature whose
lender has no explanation yet waits: its key stays open, and the next run scores it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from autointerp.asking import Asking
from autointerp.explainers.protocol import Explainer
from autointerp.fill import Filled, Item, Unit, fill
from autointerp.journal import Journal
from autointerp.llm.protocol import LLM
from autointerp.panel import Control, controls_of, key_of, lenders, panel_of, scorer_section
from autointerp.progress import Progress, Stop
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.scorers.protocol import Scorer, role_of
from autointerp.sections import instance
from autointerp.stages.asked import NOBODY, Asked, Memories
from autointerp.stages.evidence import UnitEvidence
from autointerp.stages.failed import Failed
from autointerp.stages.flow import FEATURES_AT_ONCE
from autointerp.stages.sample import by_unit, load_vocabulary, unit_windows
from autointerp.stages.score import Scoring, check_unchanged, scoring
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import FeatureId, Json

STAGE: Final = "control"


async def run_controls(run: Run, llms: Mapping[str, Asked], progress: Progress, stop: Stop) -> Filled:
    """Scores what is missing. `llms` by role. Raises what `fill` raises, and RecipeChanged where an explanation
    that was lent has changed since."""
    if not controls_of(run.recipe):
        return Filled()
    lines = [_Line(run, dictionary, llms) for dictionary in run.recipe.dictionaries]
    n_done, n_left = (sum(of) for of in zip(*((line.n_done, line.n_left) for line in lines), strict=True))
    if not n_left:
        return Filled()
    progress.begin(STAGE, n_done + n_left, "control scores", done=n_done)
    vocabulary, failed = load_vocabulary(run), Failed(run)
    try:
        return await fill(
            (unit for line in lines for unit in line.units(vocabulary)),
            n_in_flight=run.recipe.resources.n_in_flight or FEATURES_AT_ONCE,
            stop=stop.event(),
            on_done=lambda item, _: progress.advance(stage=STAGE),
            on_open=failed.note,
        )
    finally:
        failed.close()
        progress.end()


def controls_left(run: Run, dictionary: str, llms: Mapping[str, Asked]) -> Counter[Control]:
    """How many features of the panel each control is still to be scored for. Raises RecipeChanged."""
    return Counter(_Line(run, dictionary, llms).left())


@dataclass(frozen=True, slots=True)
class _Scored:
    """A control explanation under a scorer, and who does the work."""

    control: Control
    scorer: Scorer
    journal: Journal
    work: Scoring
    asked: Asked
    explainer: Explainer | None
    """Writes the explanation of the feature itself; None where it is lent."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One feature's under one of them."""

    of: _Scored
    feature: str
    lender: str | None = None
    text: str = ""
    """The lender's explanation."""


class _Line:
    """What is to be done for one dictionary."""

    def __init__(self, run: Run, dictionary: str, llms: Mapping[str, Asked]) -> None:
        self.run, self.dictionary = run, dictionary
        self.n_done = self.n_left = 0
        self._left: dict[str, list[_Work]] = {}
        """By unit."""
        panel = panel_of(run.recipe, run.identities, dictionary, run.sample(dictionary))
        features = sorted(FeatureId.parse(feature) for feature in panel)
        units = {unit: list(map(str, of_unit)) for unit, of_unit in by_unit(features)}
        explained = {
            name: _records(run.explain(dictionary, name), list(units)) for name in run.recipe.explainers
        }
        borrowed = {name: lenders(panel, records) for name, records in explained.items()}
        for scored in [_scored(run, dictionary, control, llms) for control in controls_of(run.recipe)]:
            for unit, of_unit in units.items():
                known, name = scored.journal.read(unit), scored.control.explainer
                works = (
                    [_Work(scored, feature) for feature in of_unit]
                    if name is None
                    else _lent(scored, of_unit, borrowed[name], explained[name], known)
                )
                left = [work for work in works if key_of(work.feature, work.lender) not in known]
                self._left.setdefault(unit, []).extend(left)
                self.n_left += len(left)
                self.n_done += len(works) - len(left)

    def left(self) -> Iterator[Control]:
        """One for each of its features that are left."""
        return (work.of.control for works in self._left.values() for work in works)

    def units(self, vocabulary: Vocabulary) -> Iterator[Unit]:
        for unit, works in self._left.items():
            if works:
                features = sorted({work.feature for work in works})
                windows = unit_windows(self.run, self.dictionary, unit, features, vocabulary)
                evidence = UnitEvidence(self.run, self.dictionary, unit, windows, vocabulary)
                samples = self.run.sample(self.dictionary).read(unit)
                opened = _OpenUnit(self.run, samples, windows, evidence, Memories(self.run, unit))
                yield Unit(unit, map(opened.item, works), opened.memories.close)


@dataclass(frozen=True, slots=True)
class _OpenUnit:
    """A unit with its windows and its memories."""

    run: Run
    samples: Mapping[str, Json]
    windows: Mapping[str, Windows]
    evidence: UnitEvidence
    memories: Memories

    def item(self, work: _Work) -> Item:
        return Item(work.of.journal, key_of(work.feature, work.lender), partial(self._record, work))

    async def _record(self, work: _Work) -> Json:
        """A score's record, and what was judged: whose explanation, or the text that was made."""
        of, feature, text = work.of, work.feature, work.text
        said: Json = {"control": of.control.kind, "lender": work.lender}
        if of.explainer is not None:
            evidence = self.evidence.of(feature, of.explainer)
            text = (await of.explainer.explain(evidence, self._asking(NOBODY.llm, feature))).text
            said["text"] = text
        # Named as for the feature's own score: the same windows are tested, in the same order.
        asking = self._asking(self.memories.of(of.journal, of.asked), feature)
        place = of.control.explainer or of.control.kind, of.control.scorer
        heldout = self.evidence.heldout(feature, of.scorer, place)
        return said | await of.work(self.windows[feature], heldout, self.samples[feature], text, asking)

    def _asking(self, llm: LLM, feature: str) -> Asking:
        return Asking(llm, feature, self.run.recipe.seed, self.run.prompts)


def _scored(run: Run, dictionary: str, control: Control, llms: Mapping[str, Asked]) -> _Scored:
    scorer: Scorer = instance("scorers", scorer_section(run.recipe, control))
    by = control.explainer or control.kind
    work, asked = scoring(run, by, control.scorer, scorer, llms.get(role_of(scorer), NOBODY))
    explainer = None if control.explainer else instance("explainers", {"use": control.kind})
    return _Scored(control, scorer, run.control(dictionary, control), work, asked, explainer)


def _records(journal: Journal, units: Sequence[str]) -> dict[str, Json]:
    return {key: record for unit in units for key, record in journal.read(unit).items()}


def _lent(
    scored: _Scored,
    features: Sequence[str],
    borrowed: Mapping[str, str],
    explained: Mapping[str, Json],
    known: Mapping[str, Json],
) -> list[_Work]:
    """Of those features of a unit that have a lender. `known`: records that are there."""
    works = [
        _Work(scored, feature, lender, explained[lender]["text"])
        for feature in features
        if (lender := borrowed.get(feature)) is not None
    ]
    for work in works:
        before = known.get(key_of(work.feature, work.lender))
        if before is not None:
            check_unchanged(work.lender or "", explained[work.lender or ""], before, scored.journal)
    return works
