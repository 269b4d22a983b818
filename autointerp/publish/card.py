"""The card of a published run: what was done, what came of it, and what it does not say. From records alone, so
that the same run has the same card."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

import jinja2
import yaml

from autointerp import draw
from autointerp.errors import UnknownName
from autointerp.journal import unit_of_feature
from autointerp.metrics import MeanOver
from autointerp.metrics.differences import Difference
from autointerp.prompting import source_of
from autointerp.publish.local import public, public_recipe
from autointerp.publish.manifest import Manifest
from autointerp.publish.markdown import code, escaped, fenced
from autointerp.publish.metadata import metadata
from autointerp.publish.schema import TABLES, TableName, config_name
from autointerp.report.panel import BesideControl, beside_controls
from autointerp.report.summary import MEANINGS, ScoreSummary, Summary, summarise
from autointerp.run import NO_EXPLAINER, Run
from autointerp.scored import Instance
from autointerp.stages.spent import spent_in_all
from autointerp.types import FeatureId, Json

N_DRAWN: Final = 8
"""Explanations that the card quotes of each dictionary."""
_TEMPLATE: Final = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True, slots=True)
class Published:
    """Where a set goes, and under which licence."""

    to: str
    """ORG/NAME."""
    licence: str


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt template that explanations or scores were made with."""

    name: str
    text: str | None
    """None where the template that made them is not there any more."""


def card(run: Run, manifest: Manifest, published: Published, *, jobs: int = 1) -> str:
    """Markdown with its YAML head. Reads the journals; memory: one unit's records."""
    summaries = [summarise(run, name, jobs=jobs) for name in run.recipe.dictionaries]
    recipe = public_recipe(run.recipe)
    names = ", ".join(run.recipe.dictionaries)
    title = _one_line(f"What features of {public(run.recipe.model.path or 'an unknown model')} do: {names}")
    return _template().render(
        metadata=metadata(run.recipe, manifest, published.licence, title),
        title=title,
        to=published.to,
        licence=published.licence,
        run=run,
        recipe=run.recipe,
        corpus=public(run.recipe.corpus.path) if run.recipe.corpus else None,
        activations=public(run.recipe.activations.path) if run.recipe.activations else None,
        options=manifest.options,
        summaries=summaries,
        drawn={one.dictionary: list(_drawn(run, one.dictionary)) for one in summaries},
        configs=list(_configs(run, manifest)),
        first=next(iter(run.recipe.dictionaries)),
        funnels={one.dictionary: list(_funnel(one)) for one in summaries},
        n_open=sum(_n_open(one) for one in summaries),
        instances=list(_instances(manifest)),
        prompts=_prompts(run, manifest),
        dates=_dates(run),
        spent=spent_in_all(run),
        controls=list(_controls(summaries)),
        no_explainer=NO_EXPLAINER,
        recipe_text=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        package=manifest.package,
        imported=any("published" in made_from for made_from in manifest.journals.values()),
        is_lexical=any("(lexical)" in llm for _, _, llm, _ in _instances(manifest)),
        cite_key="".join(letter if letter.isalnum() else "_" for letter in published.to),
        cite_title="".join(letter for letter in title if letter not in "{}\\%$#&~^"),
    )


def _one_line(title: str) -> str:
    """Without line breaks or control characters, for YAML."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in title).split())


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": escaped, "code": code, "fenced": fenced, "mean": _mean, "short": _short}
    environment.filters["publicly"] = public
    environment.filters |= {"spoken": lambda name: str(name).replace("_", " ")}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _mean(mean: MeanOver | Difference | Json | None) -> str:
    """0.665 [0.634, 0.696]; the interval where there is one."""
    if mean is None:
        return "–"
    value, low, high = (
        (mean.value, mean.low, mean.high)
        if isinstance(mean, MeanOver | Difference)
        else (mean["value"], mean["low"], mean["high"])
    )
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def _short(mean: MeanOver | None) -> str:
    return "–" if mean is None else f"{mean.value:.2f}"


# --- how far, and what of it ----------------------------------------------------------------------------


def _funnel(summary: Summary) -> Iterator[tuple[str, int, str]]:
    """(step, features, what became of the others)."""
    by = summary.by_status
    unsampled = summary.n_asked - summary.n_sampled
    yield "asked for", summary.n_asked, _ends({}, unsampled)
    yield "alive", summary.n_alive, _ends({"dead": by.get("dead", 0)})
    yield (
        "enough windows",
        summary.n_explainable,
        _ends({name: by.get(name, 0) for name in ("too_few", "dense")}),
    )
    for one in summary.explainers:
        yield f"explained by `{one.explainer}`", one.n_explained, _ends(one.ends, one.n_open)
    for score in summary.scores:
        whose = "" if score.explainer == NO_EXPLAINER else f" of `{score.explainer}`"
        yield (
            f"scored{whose} by `{score.scorer}`",
            score.n_scored,
            _ends(score.ends, _n_unscored(summary, score)),
        )


def _ends(ends: dict[str, int], n_open: int = 0) -> str:
    parts = [f"{n:,} {MEANINGS.get(status, status)}" for status, n in ends.items() if n]
    return "; ".join([*parts, *([f"{n_open:,} not done yet"] if n_open > 0 else [])])


def _n_unscored(summary: Summary, score: ScoreSummary) -> int:
    explained = {one.explainer: one.n_explained for one in summary.explainers}
    n_to_score = explained.get(score.explainer, summary.n_explainable)
    return n_to_score - score.n_scored - sum(score.ends.values())


def _n_open(summary: Summary) -> int:
    """Steps that features still have before them."""
    n_unsampled = summary.n_asked - summary.n_sampled
    n_unexplained = sum(one.n_open for one in summary.explainers)
    return n_unsampled + n_unexplained + sum(max(_n_unscored(summary, one), 0) for one in summary.scores)


def _configs(run: Run, manifest: Manifest) -> Iterator[tuple[str, TableName, int, int]]:
    """(config, table, rows, bytes)."""
    for dictionary in run.recipe.dictionaries:
        for table in TABLES:
            if files := manifest.of_table(dictionary, table):
                n_rows = sum(file.rows or 0 for file in files.values())
                yield config_name(dictionary, table), table, n_rows, sum(f.bytes for f in files.values())


def _drawn(run: Run, dictionary: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """(feature, explainer, explanation, each scorer's number): by keyed hash, so nobody chose them."""
    explainer = next(iter(run.recipe.explainers))
    journal, seed = run.existing("explain", dictionary, explainer), run.recipe.seed
    explained = (record for record in journal.records() if record["status"] == "ok")
    drawn = heapq.nsmallest(N_DRAWN, explained, key=lambda record: draw.key(seed, "card", str(record["key"])))
    for record in sorted(drawn, key=lambda record: FeatureId.parse(record["key"])):
        unit = unit_of_feature(FeatureId.parse(record["key"]).index)
        numbers: list[str] = []
        for scorer in run.recipe.scorers:
            score = run.existing("score", dictionary, explainer, scorer).read(unit).get(record["key"])
            metrics: Json = (score or {}).get("metrics") or {}
            numbers.append(_mean(metrics.get("values", {}).get(metrics.get("headline", ""))))
        yield record["key"], explainer, record["text"], numbers


# --- by whom ----------------------------------------------------------------------------------------------


def _instances(manifest: Manifest) -> Iterator[tuple[str, str, str, str]]:
    """(name, plug-in, LLM, options) of each explainer and scorer that made something."""
    seen: set[tuple[str, str, str, str]] = set()
    for place, made_from in manifest.journals.items():
        for kind in ("explainers", "scorers"):
            for name, section in made_from.get(kind, {}).items():
                llms = [llm for llm in made_from.get("llms", {}).values() if llm]
                said = ", ".join(_identity(llm) for llm in llms) or "none"
                options = ", ".join(f"{key}: {value}" for key, value in section["options"].items())
                one = (name, f"{section['use']}, version {section['version']}", said, options)
                if one not in seen:
                    seen.add(one)
                    yield one
        if "published" in made_from and place.startswith("score/"):
            yield (place.rpartition("/")[2], "imported", "unknown", "")


def _identity(llm: Json) -> str:
    name = llm["model"] + (f"@{llm['revision']}" if llm.get("revision") else "")
    return f"{name} ({llm['use']})" if "fallback" not in llm else f"{name}, then {_identity(llm['fallback'])}"


def _prompts(run: Run, manifest: Manifest) -> list[Prompted]:
    digests: dict[str, str] = {}
    for made_from in manifest.journals.values():
        for kind in ("explainers", "scorers"):
            for section in made_from.get(kind, {}).values():
                digests |= section.get("prompts", {})
    found: list[Prompted] = []
    for name, digest in sorted(digests.items()):
        try:
            text, its_digest = source_of(name, run.prompts)
        except UnknownName:
            text, its_digest = None, None
        found.append(Prompted(name, text if its_digest == digest else None))
    return found


def _dates(run: Run) -> tuple[str, str] | None:
    """First and last day (UTC) on which explanations and scores were written."""
    times = [
        path.stat().st_mtime for stage in ("explain", "score") for path in (run.path / stage).rglob("*.jsonl")
    ]
    if not times:
        return None
    first, last = (
        datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d") for time in (min(times), max(times))
    )
    return first, last


def _controls(summaries: Sequence[Summary]) -> Iterator[tuple[Instance, BesideControl]]:
    for summary in summaries:
        for score in summary.scores:
            for one in beside_controls(score.explainer, score.scorer, summary.controls, summary.floors):
                yield Instance(summary.dictionary, score.explainer, score.scorer), one
