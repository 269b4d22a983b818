"""The run's card: what it is, how far it is, and what it found, in numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import orjson

from autointerp import __version__
from autointerp.llm.protocol import Role
from autointerp.publish.local import without_places
from autointerp.report.figures import PAIR, used
from autointerp.report.summary import MEANINGS, Summary
from autointerp.run import ENVIRONMENT, NO_EXPLAINER, Run
from autointerp.sections import PluginSection
from autointerp.stages.spent import spent
from autointerp.types import Json
from autointerp.view.packed import cut_all

STATUSES: Final[dict[str, str]] = {
    "full": "with enough windows",
    "small": "with fewer windows than asked for: smaller tests, wider intervals",
}

_ROLES: Final[tuple[Role, ...]] = ("explainer", "judge", "embedder")
_IDENTITY: Final = ("use", "model", "revision")


def card(run: Run, summaries: list[Summary]) -> Json:
    recipe, known = run.recipe, run.identities
    environment = run.path / ENVIRONMENT
    content: Json = {
        "name": run.path.resolve().name,
        "package": __version__,
        "made_by": orjson.loads(environment.read_bytes()) if environment.is_file() else None,
        "no_explainer": NO_EXPLAINER,
        "replica": recipe.replica,
        "seed": recipe.seed,
        "model": asdict(recipe.model) | {"identity": known.model},
        "corpus": asdict(recipe.corpus) | {"identity": known.corpus} if recipe.corpus else None,
        "activations": asdict(recipe.activations) if recipe.activations else None,
        "cache": asdict(recipe.cache),
        "sampling": asdict(recipe.sampling),
        "dictionaries": [
            {
                "name": name,
                "path": section.path,
                "site": known.sites.get(name),
                "width": known.widths.get(name),
                "identity": known.dictionaries.get(name),
            }
            for name, section in recipe.dictionaries.items()
        ],
        "explainers": recipe.explainers,
        "scorers": recipe.scorers,
        "against": [[name for name in recipe.scorers if used(recipe, name) == use] for use in PAIR],
        "llms": {role: _llm(recipe.llms.of(role)) for role in _ROLES},
        "summaries": [_summary(one) for one in summaries],
        "meanings": MEANINGS | STATUSES,
        "spent": {place: asdict(total) for place, total in spent(run).items()},
    }
    return cut_all(without_places(content))


def _llm(section: PluginSection | None) -> Json | None:
    """Who it is; not where it answers, which is nobody's business."""
    return None if section is None else {name: section[name] for name in _IDENTITY if name in section}


def _summary(summary: Summary) -> Json:
    numbers = {name: content for name, content in asdict(summary).items() if name != "path"}
    return numbers | {"n_alive": summary.n_alive, "n_explainable": summary.n_explainable}
