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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from autointerp.asking import Asking
from autointerp.evidence import needs_windows
from autointerp.explainers.protocol import Explainer
from autointerp.fill import Filled, Item, Unit, fill
from autointerp.journal import Journal, Part
from autointerp.progress import Progress, Stop
from autointerp.recipe import instance
from autointerp.run import NO_EXPLAINER, Run
from autointerp.sampling.store import Windows
from autointerp.scorers.protocol import Scorer, role_of
from autointerp.sections import FALLBACK, fallback_of
from autointerp.stages.abilities import check_abilities
from autointerp.stages.asked import NOBODY, Asked, Memories
from autointerp.stages.evidence import UnitEvidence
from autointerp.stages.explain import Explaining, explaining
from autointerp.stages.sample import by_unit, load_vocabulary, unit_windows
from autointerp.stages.score import Scoring, check_unchanged, scoring
from autointerp.stages.texts import written
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import EXPLAINABLE, FeatureId, Json

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
        if (line := _Line(run, dictionary, llms, with_scores=with_scores)).find_left()
    ]
    n = {stage: [sum(line.counts[stage][at] for line in lines) for at in (0, 1)] for stage in _UNITS}
    for stage, (n_done, n_left) in n.items():
        if n_done + n_left:
            progress.begin(stage, n_done + n_left, _UNITS[stage], done=n_done)
    failed = _Failed(run)
    try:
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


_UNITS: Final = {"explain": "explanations", "probe": "sets of texts", "score": "scores"}
"""What each stage counts."""


def _stage_of(run: Run, journal: Journal) -> str:
    return journal.folder.relative_to(run.path).parts[0]


def _units(run: Run, lines: Sequence[_Line]) -> Iterator[Unit]:
    vocabulary = load_vocabulary(run) if lines else None
    for line in lines:
        assert vocabulary is not None  # there are lines
        yield from line.units(vocabulary)


@dataclass(slots=True)
class _Left:
    """Of one unit of features."""

    features: list[str]
    """All that are sampled, ascending."""
    with_windows: set[str]
    """Of these, those that have enough."""
    explain: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Features that an explainer, by name, has left."""
    score: dict[tuple[str, str], dict[str, str]] = field(
        default_factory=dict[tuple[str, str], dict[str, str]]
    )
    """Explanations by feature that are there, and that an explainer's scorer has left."""
    write: dict[tuple[str, str], dict[str, str]] = field(
        default_factory=dict[tuple[str, str], dict[str, str]]
    )
    """Of a scorer that the subject must read texts for: those for which none are written yet."""

    def unfinished(self) -> list[str]:
        """Those with anything left, ascending."""
        found = {key for of in (self.explain, self.score, self.write) for keys in of.values() for key in keys}
        return [key for key in self.features if key in found]

    def able(self, plugin: object) -> list[str]:
        """Those that an explainer or scorer can work on, ascending."""
        if not needs_windows(plugin):
            return self.features
        return [key for key in self.features if key in self.with_windows]


@dataclass(frozen=True, slots=True)
class _Explainer:
    plugin: Explainer
    journal: Journal
    work: Explaining
    asked: Asked


@dataclass(frozen=True, slots=True)
class _Scorer:
    place: tuple[str, str]
    """Names of explainer and scorer."""
    plugin: Scorer
    journal: Journal
    work: Scoring
    asked: Asked
    texts: Journal | None
    """Of texts that the subject reads before anything is scored; None: it reads none."""
    responses: Journal | None


class _Line:
    """What is to be done for one dictionary."""

    def __init__(self, run: Run, dictionary: str, llms: Mapping[str, Asked], *, with_scores: bool) -> None:
        self.run, self.dictionary = run, dictionary
        self.fallbacks = [llms[FALLBACK]] if fallback_of(run.recipe.llms.explainer) else []
        """Asked where the LLM that explains refuses."""
        self.explainers = {
            name: _Explainer(
                plugin := instance("explainers", section),
                run.explain(dictionary, name),
                *explaining(run, name, plugin, llms["explainer"]),
            )
            for name, section in run.recipe.explainers.items()
        }
        self.scorers = {
            (explainer, name): _Scorer(
                (explainer, name),
                plugin := instance("scorers", run.recipe.scorers[name]),
                run.score(dictionary, explainer, name),
                *scoring(run, explainer, name, llms.get(role_of(plugin), NOBODY)),
                *(
                    (run.texts(dictionary, explainer, name), run.responses(dictionary, explainer, name))
                    if run.is_probing(name)
                    else (None, None)
                ),
            )
            for explainer, name in (run.scored() if with_scores else ())
        }
        self.counts = {stage: [0, 0] for stage in _UNITS}
        """Of each stage: records that are there, and those that are not. An explanation yet to come counts as
        one to be scored."""
        self.n_reused = 0
        self._unfinished: set[str] = set()

    def find_left(self) -> bool:
        """Looks through all units; False if nothing is left. Memory: one unit's records."""
        for unit, features in by_unit(self.run.asked(self.dictionary)):
            left = self._left(unit, features, is_first=True)
            if left.unfinished():
                self._unfinished.add(unit)
        return bool(self._unfinished)

    def units(self, vocabulary: Vocabulary) -> Iterator[Unit]:
        for unit, features in by_unit(self.run.asked(self.dictionary)):
            if unit in self._unfinished:
                left = self._left(unit, features)
                samples = self.run.sample(self.dictionary).read(unit)
                windows = unit_windows(self.run, self.dictionary, unit, left.unfinished(), vocabulary)
                evidence = UnitEvidence(self.run, self.dictionary, unit, windows, vocabulary)
                opened = _OpenUnit(self, samples, windows, evidence, Memories(self.run, unit))
                yield Unit(unit, opened.items(left), opened.close)

    def _left(self, unit: str, features: Sequence[FeatureId], *, is_first: bool = False) -> _Left:
        samples = self.run.sample(self.dictionary).read(unit)
        keys = [str(feature) for feature in features]
        sampled = [key for key in keys if key in samples]
        left = _Left(sampled, {key for key in sampled if samples[key]["status"] in EXPLAINABLE})
        for name, explainer in self.explainers.items():
            explained, able = explainer.journal.read(unit), left.able(explainer.plugin)
            left.explain[name] = [key for key in able if key not in explained]
            ok = {key: explained[key] for key in able if explained.get(key, {}).get("status") == "ok"}
            n_scored = n_unscored = 0
            for place, scorer in self.scorers.items():
                if place[0] == name:
                    scored, testable = scorer.journal.read(unit), set(left.able(scorer.plugin))
                    left.score[place] = {
                        key: one["text"] for key, one in ok.items() if key not in scored and key in testable
                    }
                    for key in ok.keys() & scored.keys():
                        check_unchanged(key, ok[key], scored[key], scorer.journal)
                    if scorer.texts is not None and scorer.responses is not None:
                        self._part_written(
                            unit, left, place, ok, testable, scorer.texts, scorer.responses, is_first=is_first
                        )
                    n_scored += len(ok.keys() & scored.keys())
                    n_unscored += len(
                        testable.difference(scored).intersection(ok.keys() | set(left.explain[name]))
                    )
            if is_first:
                self._count("explain", len(able) - len(left.explain[name]), len(left.explain[name]))
                self._count("score", n_scored, n_unscored)
        for (explainer, name), scorer in self.scorers.items():
            if explainer == NO_EXPLAINER:
                scored, able = scorer.journal.read(unit), left.able(scorer.plugin)
                left.score[explainer, name] = {key: "" for key in able if key not in scored}
                if is_first:
                    n_left = len(left.score[explainer, name])
                    self._count("score", len(able) - n_left, n_left)
        return left

    def _part_written(
        self,
        unit: str,
        left: _Left,
        place: tuple[str, str],
        ok: Mapping[str, Json],
        testable: set[str],
        texts: Journal,
        responses: Journal,
        *,
        is_first: bool,
    ) -> None:
        """Of what is left to score: without texts, these are to be written first; with texts that the subject has
        not read nothing can be done here."""
        written, answered, unscored = texts.read(unit), responses.read(unit), left.score[place]
        for key in ok.keys() & written.keys():
            check_unchanged(key, ok[key], written[key], texts)
        left.write[place] = {key: text for key, text in unscored.items() if key not in written}
        left.score[place] = {
            key: text
            for key, text in unscored.items()
            if key in answered or (key in written and not written[key]["texts"])
        }
        if is_first:
            n_left = len(left.write[place]) + len(testable.intersection(left.explain[place[0]]))
            self._count("probe", len(ok.keys() & written.keys()), n_left)

    def _count(self, stage: str, n_done: int, n_left: int) -> None:
        self.counts[stage][0] += n_done
        self.counts[stage][1] += n_left


class _OpenUnit:
    """A unit with its windows and its memories."""

    def __init__(
        self,
        line: _Line,
        samples: Mapping[str, Json],
        windows: Mapping[str, Windows],
        evidence: UnitEvidence,
        memories: Memories,
    ) -> None:
        self._line, self._samples, self._windows, self._memories = line, samples, windows, memories
        self._evidence = evidence

    def items(self, left: _Left) -> Iterator[Item]:
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

    async def _explain(self, explainer: _Explainer, feature: str) -> Json:
        asked = [explainer.asked, *self._line.fallbacks] if explainer.plugin.needs_llm else [explainer.asked]
        askings = [self._asking(explainer.journal, one, feature) for one in asked]
        return await explainer.work(self._evidence.of(feature, explainer.plugin), askings)

    def close(self) -> None:
        self._line.n_reused += self._memories.n_reused
        self._memories.close()

    def _scores_of(self, scorers: Sequence[_Scorer], feature: str, explanation: Json) -> Iterator[Item]:
        if explanation["status"] == "ok":
            for scorer in scorers:
                begin = self._score if scorer.texts is None else self._write
                yield begin(scorer, feature, explanation["text"])

    def _score(self, scorer: _Scorer, feature: str, text: str) -> Item:
        asking = self._asking(scorer.journal, scorer.asked, feature)
        heldout = self._evidence.heldout(feature, scorer.plugin, scorer.place)
        known = self._windows[feature], heldout, self._samples[feature]
        return Item(scorer.journal, feature, partial(scorer.work, *known, text, asking))

    def _write(self, scorer: _Scorer, feature: str, text: str) -> Item:
        assert scorer.texts is not None
        asking = self._asking(scorer.texts, scorer.asked, feature)
        return Item(scorer.texts, feature, partial(written, scorer.plugin, text, asking))

    def _asking(self, journal: Journal, asked: Asked, feature: str) -> Asking:
        run = self._line.run
        return Asking(self._memories.of(journal, asked), feature, run.recipe.seed, run.prompts)


class _Failed:
    """The journals of keys that stayed open, one an explainer and scorer."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._parts: dict[Path, Part] = {}

    def note(self, item: Item, reason: str) -> None:
        folder = item.journal.folder
        if folder not in self._parts:
            self._parts[folder] = Part(self._run.beside("failed", item.journal), "open")
        self._parts[folder].append(item.key, {"reason": reason})

    def close(self) -> None:
        for part in self._parts.values():
            part.close()
