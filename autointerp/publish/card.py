"""The card of a published run: what was done, what came of it, and what it does not say. From records alone, so
that the same run has the same card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from autointerp.llm.left_out import left_out
from autointerp.publish.local import public, public_recipe
from autointerp.publish.manifest import Manifest
from autointerp.publish.metadata import metadata
from autointerp.publish.schema import TABLES, TableName, config_name
from autointerp.report.authors import authors, is_counted, is_imported, is_lexical, prompts
from autointerp.report.drawn import drawn
from autointerp.report.funnel import n_open, steps
from autointerp.report.summary import beside_all, summarise
from autointerp.report.templates import markdown_template
from autointerp.run import NO_EXPLAINER, Run
from autointerp.stages.spent import in_all, spent

_TEMPLATE: Final = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True, slots=True)
class Published:
    """Where a set goes, and under which licence."""

    to: str
    """ORG/NAME."""
    licence: str


def card(run: Run, manifest: Manifest, published: Published, *, jobs: int = 1) -> str:
    """Markdown with its YAML head. Reads the journals; memory: one unit's records."""
    summaries = [summarise(run, name, jobs=jobs) for name in run.recipe.dictionaries]
    recipe = public_recipe(run.recipe)
    by = authors(manifest.journals)
    names = ", ".join(run.recipe.dictionaries)
    title = _one_line(f"What features of {public(run.recipe.model.path or 'an unknown model')} do: {names}")
    spent_by = spent(run)
    configs = list(_configs(run, manifest))
    return markdown_template(_TEMPLATE).render(
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
        drawn={one.dictionary: list(drawn(run, one.dictionary)) for one in summaries},
        configs=configs,
        tables_there={table for _, table, _, _ in configs},
        first=next(iter(run.recipe.dictionaries)),
        funnels={one.dictionary: list(steps(one)) for one in summaries},
        n_open=sum(n_open(one) for one in summaries),
        authors=by,
        prompts=prompts(run, manifest.journals),
        dates=manifest.written,
        spent=in_all(spent_by),
        spent_by=spent_by,
        left_out=left_out(run.path),
        controls=list(beside_all(summaries)),
        no_explainer=NO_EXPLAINER,
        recipe_text=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        package=manifest.package,
        imported=is_imported(manifest.journals),
        is_lexical=is_lexical(by),
        is_counted=is_counted(manifest.journals, run.recipe),
        cite_key="".join(letter if letter.isalnum() else "_" for letter in published.to),
        cite_title="".join(letter for letter in title if letter not in "{}\\%$#&~^"),
    )


def _one_line(title: str) -> str:
    """Without line breaks or control characters, for YAML."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in title).split())


def _configs(run: Run, manifest: Manifest) -> Iterator[tuple[str, TableName, int, int]]:
    """(config, table, rows, bytes)."""
    for dictionary in run.recipe.dictionaries:
        for table in TABLES:
            if files := manifest.of_table(dictionary, table):
                n_rows = sum(file.rows or 0 for file in files.values())
                yield config_name(dictionary, table), table, n_rows, sum(f.bytes for f in files.values())
