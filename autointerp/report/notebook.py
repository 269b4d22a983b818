"""A run in a cell of a notebook: what it is, how far it is, what it scores. Nothing in it runs or is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import jinja2

from autointerp.errors import AutointerpError
from autointerp.publish.local import public
from autointerp.report.funnel import Step, steps
from autointerp.report.panel import BesideControl, beside_controls
from autointerp.report.summary import ScoreSummary, Summary, spoken, summarise
from autointerp.report.templates import mean_of
from autointerp.run import NO_EXPLAINER, Run

SUMMED_UP_TO: Final = 20_000
"""Features. A larger run is not read through for being looked at."""
_TEMPLATE: Final = Path(__file__).with_name("notebook.html.jinja")


@dataclass(frozen=True, slots=True)
class _Shown:
    """One dictionary."""

    summary: Summary
    steps: list[Step]
    scores: list[tuple[ScoreSummary, list[BesideControl]]]


def html(run: Run) -> str:
    """Escaped. A run that can't be read says why in the place of its numbers."""
    n_asked = sum(len(run.asked(name)) for name in run.recipe.dictionaries)
    fault, dictionaries = "", list[_Shown]()
    if n_asked > SUMMED_UP_TO:
        fault = f"Its numbers take a while: autointerp status {run.path}"
    else:
        try:
            dictionaries = [_shown(summarise(run, name)) for name in run.recipe.dictionaries]
        except AutointerpError as error:
            fault = str(error)
    return _template().render(
        name=f"Run {run.path}",
        facts=list(_facts(run, n_asked)),
        fault=fault,
        dictionaries=dictionaries,
        no_explainer=NO_EXPLAINER,
    )


def _shown(summary: Summary) -> _Shown:
    scores = [
        (one, list(beside_controls(one.explainer, one.scorer, summary.controls, summary.floors)))
        for one in summary.scores
        if one.n_scored
    ]
    return _Shown(summary, list(steps(summary)), scores)


def _facts(run: Run, n_asked: int) -> Iterator[str]:
    recipe, known = run.recipe, run.identities
    yield f"model {public(recipe.model.path or 'unknown')} ({known.model[:12]})"
    for name in recipe.dictionaries:
        yield f"{name}: {known.widths[name]:,} features ({known.dictionaries[name][:12]})"
    if recipe.corpus is not None:
        yield f"corpus {public(recipe.corpus.path)}, {recipe.cache.n_tokens:,} tokens"
    yield f"{n_asked:,} features asked for"
    for role, section in (("explained", recipe.llms.explainer), ("judged", recipe.llms.judge)):
        if section is not None:
            yield f"{role} by {public(str(section.get('model', section['use'])))}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"mean": mean_of, "spoken": spoken}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
