"""Explain and score, as one flow: a feature's scoring starts when its explanation is there.

    for each unit of features      windows and LLM memories are opened once, and closed behind its last score
        for each feature           explained -> scored by every scorer; or scored, where it was explained before
                                   (where the subject reads texts first: explained -> texts written; scored in a
                                   second flow, behind the probe stage)

So an LLM has something to do from the first feature to the last. Each explainer has a journal, and each scorer
one for each explainer; what is missing in them is found first, unit by unit, and a unit that lacks nothing is
not opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from autointerp.asking import Asking
from autointerp.fill import Filled, Item, Unit, fill
from autointerp.garbage import rarely_collected
from autointerp.journal import Journal
from autointerp.progress import Progress, Stop
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.stages.abilities import check_abilities
from autointerp.stages.asked import Asked, Memories
from autointerp.stages.evidence import UnitEvidence
from autointerp.stages.failed import Failed
from autointerp.stages.left import COUNTED, Explains, Left, Line, Scores
from autointerp.stages.sample import by_unit, load_vocabulary, unit_windows
from autointerp.stages.texts import written
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import FeatureId, Json

FEATURES_AT_ONCE: Final = 256
"""Unless the recipe says otherwise: an explanation is one request, and engines take hundreds."""


async def run_flow(
    run: Run, llms: Mapping[str, Asked], progress: Progress, stop: Stop, *, with_scores: bool = True
) -> Filled:
    """Explains what is missing, and scores it. `llms` by role. Raises what `fill` raises, and RecipeChanged
    where an explanation is scored whose text has changed since, before anything is asked; RecipeError where an LLM
    can't do what a scorer needs."""
    if with_scores:
        check_abilities(run, llms)
    lines = [
        line
        for dictionary in run.recipe.dictionaries
        if (line := Line(run, dictionary, llms, with_scores=with_scores)).find_left()
    ]
    n = {stage: [sum(line.counts[stage][at] for line in lines) for at in (0, 1)] for stage in COUNTED}
    for stage, (n_done, n_left) in n.items():
        if n_done + n_left:
            progress.begin(stage, n_done + n_left, COUNTED[stage], done=n_done)
    failed = Failed(run)
    try:
        with rarely_collected():
            return await fill(
                _units(run, lines),
                n_in_flight=run.recipe.resources.n_in_flight or FEATURES_AT_ONCE,
                stop=stop.event(),
                on_done=lambda item, _: progress.advance(stage=_stage_of(run, item.journal)),
                on_open=failed.note,
            )
    finally:
        failed.close()
        progress.end()
        if n_reused := sum(line.n_reused for line in lines):
            progress.note(f"{n_reused:,} answers were taken from {run.recipe.resources.reuse_requests}.")


def _stage_of(run: Run, journal: Journal) -> str:
    return journal.folder.relative_to(run.path).parts[0]


def _units(run: Run, lines: Sequence[Line]) -> Iterator[Unit]:
    vocabulary = load_vocabulary(run) if lines else None
    for line in lines:
        assert vocabulary is not None  # there are lines
        for unit, features in by_unit(run.asked(line.dictionary)):
            if unit in line.unfinished:
                yield _opened(line, unit, features, vocabulary)


def _opened(line: Line, unit: str, features: Sequence[FeatureId], vocabulary: Vocabulary) -> Unit:
    run, dictionary, left = line.run, line.dictionary, line.left(unit, features)
    samples = run.sample(dictionary).read(unit)
    windows = unit_windows(run, dictionary, unit, left.unfinished(), vocabulary)
    evidence = UnitEvidence(run, dictionary, unit, windows, vocabulary)
    opened = _OpenUnit(line, samples, windows, evidence, Memories(run, unit))
    return Unit(unit, opened.items(left), opened.close)


class _OpenUnit:
    """A unit with its windows and its memories."""

    def __init__(
        self,
        line: Line,
        samples: Mapping[str, Json],
        windows: Mapping[str, Windows],
        evidence: UnitEvidence,
        memories: Memories,
    ) -> None:
        self._line, self._samples, self._windows, self._memories = line, samples, windows, memories
        self._evidence = evidence

    def items(self, left: Left) -> Iterator[Item]:
        """Feature by feature."""
        to_explain = {name: set(keys) for name, keys in left.explain.items()}
        testable = {place: set(left.able(scorer.plugin)) for place, scorer in self._line.scorers.items()}
        for feature in left.unfinished():
            for name, explainer in self._line.explainers.items():
                if feature in to_explain[name]:
                    work = partial(self._explain, explainer, feature)
                    scorers = [
                        scorer
                        for place, scorer in self._line.scorers.items()
                        if place[0] == name and feature in testable[place]
                    ]
                    then = partial(self._scores_of, scorers, feature)
                    yield Item(explainer.journal, feature, work, then)
            for place, texts in left.score.items():
                if feature in texts:
                    yield self._score(self._line.scorers[place], feature, texts[feature])
            for place, texts in left.write.items():
                if feature in texts:
                    yield self._write(self._line.scorers[place], feature, texts[feature])

    async def _explain(self, explainer: Explains, feature: str) -> Json:
        asked = [explainer.asked, *self._line.fallbacks] if explainer.plugin.needs_llm else [explainer.asked]
        askings = [self._asking(explainer.journal, one, feature) for one in asked]
        return await explainer.work(self._evidence.of(feature, explainer.plugin), askings)

    def close(self) -> None:
        self._line.n_reused += self._memories.n_reused
        self._memories.close()

    def _scores_of(self, scorers: Sequence[Scores], feature: str, explanation: Json) -> Iterator[Item]:
        if explanation["status"] == "ok":
            for scorer in scorers:
                begin = self._score if scorer.texts is None else self._write
                yield begin(scorer, feature, explanation["text"])

    def _score(self, scorer: Scores, feature: str, text: str) -> Item:
        asking = self._asking(scorer.journal, scorer.asked, feature)
        heldout = self._evidence.heldout(feature, scorer.plugin, scorer.place)
        known = self._windows[feature], heldout, self._samples[feature]
        return Item(scorer.journal, feature, partial(scorer.work, *known, text, asking))

    def _write(self, scorer: Scores, feature: str, text: str) -> Item:
        assert scorer.texts is not None
        asking = self._asking(scorer.texts, scorer.asked, feature)
        return Item(scorer.texts, feature, partial(written, scorer.plugin, text, asking))

    def _asking(self, journal: Journal, asked: Asked, feature: str) -> Asking:
        run = self._line.run
        return Asking(self._memories.of(journal, asked), feature, run.recipe.seed, run.prompts)
