"""What is left to explain, to write and to score, by what the journals hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from autointerp.evidence import needs_windows
from autointerp.explainers.protocol import Explainer
from autointerp.journal import Journal
from autointerp.run import NO_EXPLAINER, Run
from autointerp.run.made_from import judge_of_candidates
from autointerp.scorers.protocol import Scorer, role_of
from autointerp.sections import fallbacks_of, instance
from autointerp.stages.asked import NOBODY, Asked
from autointerp.stages.explain import Explaining, explaining
from autointerp.stages.sample import by_unit
from autointerp.stages.score import Scoring, check_unchanged, scoring
from autointerp.types import EXPLAINABLE, FeatureId, Json

COUNTED: Final = {"explain": "explanations", "probe": "sets of texts", "score": "scores"}
"""What each stage counts."""


@dataclass(slots=True)
class Left:
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
class Explains:
    plugin: Explainer
    journal: Journal
    work: Explaining
    asked: Asked
    judge: Asked | None
    """Of candidates, where the explainer chooses between some and another LLM judges them."""


@dataclass(frozen=True, slots=True)
class Scores:
    place: tuple[str, str]
    """Names of explainer and scorer."""
    plugin: Scorer
    journal: Journal
    work: Scoring
    asked: Asked
    texts: Journal | None
    """Of texts that the subject reads before anything is scored; None: it reads none."""
    responses: Journal | None


class Line:
    """What is to be done for one dictionary."""

    def __init__(self, run: Run, dictionary: str, llms: Mapping[str, Asked], *, with_scores: bool) -> None:
        self.run, self.dictionary = run, dictionary
        self.fallbacks = [llms[name] for name in fallbacks_of(run.recipe.llms.explainer)]
        """Asked in turn where the LLM that explains refuses."""
        self.explainers = {
            name: Explains(
                plugin := instance("explainers", section),
                run.explain(dictionary, name),
                *explaining(run, name, plugin, llms["explainer"]),
                None if judge_of_candidates(run.recipe.llms, plugin) is None else llms["judge"],
            )
            for name, section in run.recipe.explainers.items()
        }
        self.scorers = {
            (explainer, name): Scores(
                (explainer, name),
                plugin := instance("scorers", run.recipe.scorers[name]),
                run.score(dictionary, explainer, name),
                *scoring(run, explainer, name, plugin, llms.get(role_of(plugin), NOBODY)),
                *(
                    (run.texts(dictionary, explainer, name), run.responses(dictionary, explainer, name))
                    if run.is_probing(name)
                    else (None, None)
                ),
            )
            for explainer, name in (run.scored() if with_scores else ())
        }
        self.counts = {stage: [0, 0] for stage in COUNTED}
        """Of each stage: records that are there, and those that are not. An explanation yet to come counts as
        one to be scored."""
        self.n_reused = 0
        self.unfinished: set[str] = set()
        """Units with anything left; known when `find_left` has looked."""

    def find_left(self) -> bool:
        """Looks through all units; False if nothing is left. Memory: one unit's records."""
        for unit, features in by_unit(self.run.asked(self.dictionary)):
            left = self.left(unit, features, is_first=True)
            if left.unfinished():
                self.unfinished.add(unit)
        return bool(self.unfinished)

    def left(self, unit: str, features: Sequence[FeatureId], *, is_first: bool = False) -> Left:
        """Of one unit. `is_first`: it is counted."""
        samples = self.run.sample(self.dictionary).read(unit)
        keys = [str(feature) for feature in features]
        sampled = [key for key in keys if key in samples]
        left = Left(sampled, {key for key in sampled if samples[key]["status"] in EXPLAINABLE})
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
        left: Left,
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
