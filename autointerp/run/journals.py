"""Where each stage's journal lies and what it is made from: the digests that tell whether a result still stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autointerp import __version__
from autointerp.evidence import needs_of, uses_of
from autointerp.identities import Identities
from autointerp.journal import Journal
from autointerp.llm.protocol import Role
from autointerp.panel import Control, controls_of
from autointerp.prompting import load_template
from autointerp.recipe import Recipe
from autointerp.run.made_from import judge_of_candidates, of_llm, of_plugin, of_section, scores_features
from autointerp.run.names import (
    CACHE_VERSION,
    CALIBRATION_VERSION,
    DIRECTIONS_VERSION,
    INTERVENE_VERSION,
    N_NEIGHBOURS,
    N_TOKENS,
    NO_EXPLAINER,
    PROBE_VERSION,
    SAMPLE_VERSION,
    SCORE_VERSION,
    TOP_UP_VERSION,
)
from autointerp.sampling.settings import digested
from autointerp.scorers.protocol import Scorer, role_of
from autointerp.sections import PluginSection, instance
from autointerp.subject.corpus_spec import RANDOM
from autointerp.types import Json


@dataclasses.dataclass(frozen=True, slots=True)
class Journals:
    """Those of one run, by stage."""

    path: Path
    recipe: Recipe
    identities: Identities

    def check(self) -> None:
        """Compares what is there with the recipe. Raises RecipeChanged for the first stage that differs."""
        for journal in self.journals():
            journal.check()

    def journals(self) -> Iterator[Journal]:
        """Those of all stages, in the order of the line."""
        yield self.rows()
        if self.recipe.cache.top_up:
            yield self.top_up_rows()
        for dictionary in self.recipe.dictionaries:
            yield self.cache(dictionary)
            if self.recipe.cache.top_up:
                yield self.top_up(dictionary)
            yield self.directions(dictionary)
            yield self.sample(dictionary)
            if self.needs_effects:
                yield self.intervene(dictionary)
            for explainer in self.recipe.explainers:
                yield self.explain(dictionary, explainer)
            for explainer, scorer in self.scored():
                if self.is_probing(scorer):
                    yield self.texts(dictionary, explainer, scorer)
                    yield self.responses(dictionary, explainer, scorer)
                yield self.score(dictionary, explainer, scorer)
            for control in controls_of(self.recipe):
                yield self.control(dictionary, control)

    def rows(self) -> Journal:
        recipe, cache = self.recipe, self.recipe.cache
        identity: Json = {"identity": self.identities.corpus}
        if recipe.activations is not None:
            source = {"activations": of_section(recipe.activations, "path", "tokenizer") | identity}
        else:
            assert recipe.corpus is not None  # filled by `resolve`
            source = {"corpus": of_section(recipe.corpus, "path", "streaming", "reference") | identity}
        made_from: Json = source | {
            "version": CACHE_VERSION,
            "model": {"identity": self.identities.model},
            "cache": {
                name: getattr(cache, name)
                for name in ("n_tokens", "context_length", "prepend_bos", "shard_tokens")
            },
        }
        if recipe.corpus is not None and RANDOM in (recipe.corpus.path, recipe.corpus.format):
            made_from["seed"] = recipe.seed  # other corpora are read, not drawn
        return self._journal("rows", made_from)

    def cache(self, dictionary: str) -> Journal:
        cache, given = self.recipe.cache, self.recipe.activations
        model: Json = {"identity": self.identities.model}
        if given is None:
            model["dtype"] = self.recipe.model.dtype
        # Of firings that delphi cached nothing is encoded, and without vectors there are no sinks.
        names = ("sink_ratio", "encode_in") if given is None or not given.has_firings else ()
        made_from: Json = {
            "version": CACHE_VERSION,
            "rows": self.rows().digest,
            "model": model,
            "dictionaries": {dictionary: self._identity(dictionary)},
            "cache": {name: getattr(cache, name) for name in ("mask_first", "max_rows", *names)},
        }
        if self.is_calibrated(dictionary):
            made_from["cache"]["calibration_tokens"] = cache.calibration_tokens
            made_from |= {"calibration_version": CALIBRATION_VERSION, "seed": self.recipe.seed}
        return self._journal(f"cache/{dictionary}", made_from)

    def top_up_rows(self) -> Journal:
        """The rows behind those of `rows`, numbered on."""
        made_from: Json = {
            "version": TOP_UP_VERSION,
            "rows": self.rows().digest,
            "cache": {"top_up": self.recipe.cache.top_up},
        }
        return self._journal("top-up/rows", made_from)

    def top_up(self, dictionary: str) -> Journal:
        """What features that lack windows do on the rows of `top_up_rows`. Which these are follows from the
        cache, so its digest stands for them."""
        made_from: Json = {
            "rows": self.top_up_rows().digest,
            "base": self.cache(dictionary).digest,
            "cache": {"top_up_below": self.recipe.cache.top_up_below},
        }
        return self._journal(f"top-up/cache/{dictionary}", made_from)

    def directions(self, dictionary: str) -> Journal:
        made_from: Json = {
            "version": DIRECTIONS_VERSION,
            "model": {"identity": self.identities.model},
            "dictionaries": {dictionary: self._identity(dictionary)},
            "n_neighbours": N_NEIGHBOURS,
            "n_tokens": N_TOKENS,
        }
        return self._journal(f"directions/{dictionary}", made_from)

    def sample(self, dictionary: str) -> Journal:
        cache, sampling = self.recipe.cache, digested(self.recipe.sampling)
        made_from: Json = {
            "version": SAMPLE_VERSION,
            "cache": self.cache(dictionary).digest,
            "sampling": sampling,
            "seed": self.recipe.seed,
        }
        if cache.top_up:  # named as in the recipe: a run that was sampled without one is told of these
            made_from["top_up"] = self.top_up(dictionary).digest
            made_from |= {f"cache.{name}": getattr(cache, name) for name in ("top_up", "top_up_below")}
        return self._journal(f"sample/{dictionary}", made_from)

    def intervene(self, dictionary: str) -> Journal:
        settings = dataclasses.asdict(self.recipe.intervention)
        del settings["always"]
        made_from: Json = {
            "version": INTERVENE_VERSION,
            "sample": self.sample(dictionary).digest,
            "intervention": settings,
            "seed": self.recipe.seed,
        }
        return self._journal(f"intervene/{dictionary}", made_from)

    @property
    def needs_effects(self) -> bool:
        """Whether features are to be pushed: the recipe asks for it, or an explainer or scorer can't do without."""
        recipe = self.recipe
        plugins = [instance("explainers", section) for section in recipe.explainers.values()]
        plugins += [instance("scorers", section) for section in recipe.scorers.values()]
        return recipe.intervention.always or any("effects" in needs_of(plugin) for plugin in plugins)

    def explain(self, dictionary: str, explainer: str) -> Journal:
        section = self.recipe.explainers[explainer]
        plugin = instance("explainers", section)
        made_from: Json = {
            "sample": self.sample(dictionary).digest,
            "explainers": {explainer: self._plugin(plugin, section)},
            "llms": {"explainer": self._llm("explainer", plugin.needs_llm)},
            "seed": self.recipe.seed,
        }
        if (judge := judge_of_candidates(self.recipe.llms, plugin)) is not None:
            made_from["llms"]["judge"] = judge
        if "directions" in uses_of(plugin):
            made_from["directions"] = self.directions(dictionary).digest
        if "effects" in uses_of(plugin) and self.needs_effects:
            made_from["effects"] = self.intervene(dictionary).digest
        return self._journal(f"explain/{dictionary}/{explainer}", made_from)

    def texts(self, dictionary: str, explainer: str, scorer: str) -> Journal:
        """What was written for explanations, for the subject to read."""
        section = self.recipe.scorers[scorer]
        plugin: Scorer = instance("scorers", section)
        role = role_of(plugin)
        made_from: Json = {
            "scorers": {scorer: self._plugin(plugin, section)},
            "llms": {role: self._llm(role, plugin.needs_llm)},
            "seed": self.recipe.seed,
            "explanations": self.explain(dictionary, explainer).digest,
        }
        return self._journal(f"probe/{dictionary}/{explainer}/{scorer}/texts", made_from)

    def responses(self, dictionary: str, explainer: str, scorer: str) -> Journal:
        """What the subject does on these texts. Model, dictionary and masking are those of the cache, whose digest
        is in that of the explanations."""
        made_from: Json = {
            "version": PROBE_VERSION,
            "texts": self.texts(dictionary, explainer, scorer).digest,
        }
        return self._journal(f"probe/{dictionary}/{explainer}/{scorer}/responses", made_from)

    def is_probing(self, scorer: str) -> bool:
        """Whether the subject has to read texts before the scorer can judge."""
        return "probe" in needs_of(instance("scorers", self.recipe.scorers[scorer]))

    def score(self, dictionary: str, explainer: str, scorer: str) -> Journal:
        """`explainer`: NO_EXPLAINER for a scorer that needs no explanation."""
        if explainer == NO_EXPLAINER:
            judged: Json = {"sample": self.sample(dictionary).digest}
        else:
            judged = {"explanations": self.explain(dictionary, explainer).digest}
        if "probe" in needs_of(instance("scorers", self.recipe.scorers[scorer])):
            judged["responses"] = self.responses(dictionary, explainer, scorer).digest
        made_from = self._judging(dictionary, scorer) | judged
        return self._journal(f"score/{dictionary}/{explainer}/{scorer}", made_from)

    def control(self, dictionary: str, control: Control) -> Journal:
        """Scores of control explanations. Which features these are, and whose they borrow, is said by the keys."""
        made_from = self._judging(dictionary, control.scorer)
        if control.explainer is not None:
            made_from["explanations"] = self.explain(dictionary, control.explainer).digest
        else:
            section: PluginSection = {"use": control.kind}
            made_from["explainers"] = self._plugin(instance("explainers", section), section)
            made_from["sample"] = self.sample(dictionary).digest
        return self._journal(f"control/{dictionary}/{control.place}", made_from)

    def _judging(self, dictionary: str, scorer: str) -> Json:
        """What a scorer makes of any explanation is made from."""
        section = self.recipe.scorers[scorer]
        plugin: Scorer = instance("scorers", section)
        role = role_of(plugin)
        made_from: Json = {
            "version": SCORE_VERSION,
            "scorers": {scorer: self._plugin(plugin, section)},
            "llms": {role: self._llm(role, plugin.needs_llm)},
            "seed": self.recipe.seed,
        }
        if "effects" in uses_of(plugin):
            made_from["effects"] = self.intervene(dictionary).digest
        if self.recipe.replica is not None:  # every score says it
            made_from |= {"replica": self.recipe.replica, "headline": self.recipe.headline}
        return made_from

    def scored(self) -> list[tuple[str, str]]:
        """Whose explanations (NO_EXPLAINER where none is needed) each scorer scores, explainer by explainer. A
        scorer whose code is not here counts as one that needs explanations."""
        pairs = [(name, scorer) for name in self.recipe.explainers for scorer in self.recipe.scorers]
        without = {name for name, section in self.recipe.scorers.items() if scores_features(section)}
        return [pair for pair in pairs if pair[1] not in without] + [
            (NO_EXPLAINER, name) for name in self.recipe.scorers if name in without
        ]

    def existing(self, *place: str) -> Journal:
        """A stage's journal to read from, e.g. `existing("score", "layers.2", "plain", "detection")`."""
        return Journal.existing(self.path.joinpath(*place))

    def beside(self, kind: str, journal: Journal) -> Journal:
        """The journal of LLM `requests`, their `usage`, or `failed` keys that belongs to a stage's."""
        return Journal(self.path / kind / journal.folder.relative_to(self.path), None, package=__version__)

    def _journal(self, place: str, made_from: Json) -> Journal:
        return Journal(self.path / place, made_from, package=__version__)

    def _identity(self, dictionary: str) -> Json:
        known = self.identities
        said: Json = {"identity": known.dictionaries[dictionary], "hook": known.sites[dictionary]}
        return said | ({"reader": known.readers[dictionary]} if dictionary in known.readers else {})

    def _plugin(self, plugin: Any, section: PluginSection) -> Json:
        return of_plugin(plugin, section, self.templates(plugin))

    def templates(self, plugin: Any) -> dict[str, str]:
        """Digest of each prompt template an explainer or scorer uses, by name."""
        return {name: load_template(name, self.prompts).digest for name in plugin.templates()}

    @property
    def prompts(self) -> Path | None:
        """The user's own prompt folder."""
        return Path(self.recipe.resources.prompts) if self.recipe.resources.prompts else None

    def _llm(self, role: Role, needed: bool) -> Json | None:
        section = self.recipe.llms.of(role)
        return None if not needed or section is None else of_llm(section)

    def is_calibrated(self, dictionary: str) -> bool:
        """Whether the dictionary's thresholds come from the run's own tokens."""
        return self.identities.calibrated.get(dictionary, False)
