"""Who explained and scored, and with which prompts: from what the records were made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from autointerp.errors import UnknownName
from autointerp.journal import MADE_FROM
from autointerp.panel import control_places
from autointerp.prompting import source_of
from autointerp.publish.local import without_places
from autointerp.recipe import Recipe
from autointerp.run import Run
from autointerp.sections import FALLBACK
from autointerp.types import Json

COUNTING: Final = ("lexical", "top_tokens")
"""Explainers that count tokens and ask nobody."""


@dataclass(frozen=True, slots=True)
class Author:
    """An explainer or scorer that made something."""

    name: str
    plugin: str
    llm: str
    options: str


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt template that explanations or scores were made with."""

    name: str
    text: str | None
    """None where the template that made them is not there any more."""


def journals_of(run: Run) -> dict[str, Json]:
    """What the records of each journal that readers look at were made from, by place
    (`score/layers.2/plain/detection`); without paths of this machine."""
    found: dict[str, Json] = {}
    for dictionary in run.recipe.dictionaries:
        folders = [(stage, dictionary) for stage in ("sample", "directions", "intervene")]
        folders += [("explain", dictionary, name) for name in run.recipe.explainers]
        folders += [("score", dictionary, *pair) for pair in run.scored()]
        folders += [
            ("control", dictionary, place) for place in control_places(run.path, run.recipe, dictionary)
        ]
        for place in folders:
            path = run.path.joinpath(*place)
            if (path / MADE_FROM).is_file():
                found["/".join(place)] = without_places(run.existing(*place).made_from)
    return found


def authors(journals: Mapping[str, Json]) -> list[Author]:
    """`journals`: what `journals_of` gives."""
    return list(dict.fromkeys(_authors(journals)))


def _of_explanations(journals: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """Without those of controls, which are made otherwise and told in a table of their own."""
    return ((place, made_from) for place, made_from in journals.items() if not place.startswith("control/"))


def _authors(journals: Mapping[str, Json]) -> Iterator[Author]:
    for place, made_from in _of_explanations(journals):
        for kind in ("explainers", "scorers"):
            for name, section in made_from.get(kind, {}).items():
                llms = [llm for llm in made_from.get("llms", {}).values() if llm]
                said = ", ".join(_identity(llm) for llm in llms) or "none"
                options = ", ".join(f"{key}: {value}" for key, value in section["options"].items())
                yield Author(name, f"{section['use']}, version {section['version']}", said, options)
        if "published" in made_from and place.startswith("score/"):
            yield Author(place.rpartition("/")[2], "imported", "unknown", "")


def _identity(llm: Json) -> str:
    name = llm["model"] + (f"@{llm['revision']}" if llm.get("revision") else "")
    return f"{name} ({llm['use']})" if "fallback" not in llm else f"{name}, then {_identity(llm['fallback'])}"


def is_lexical(by: list[Author]) -> bool:
    """Whether corpus statistics wrote or judged in the place of an LLM."""
    return any("(lexical)" in one.llm for one in by)


def is_counted(journals: Mapping[str, Json], recipe: Recipe) -> bool:
    """Whether every explanation is made of statistics of tokens, whoever judges it; before the first one is made,
    whether it would be."""
    made = [one for place, one in journals.items() if place.startswith("explain/")]
    if any("published" in one for one in made):
        return False
    by = [(one["explainers"], one["llms"]["explainer"]) for one in made]
    by = by or [(recipe.explainers, recipe.llms.explainer)]
    are_counted = [
        section["use"] in COUNTING or _is_counting(llm)
        for sections, llm in by
        for section in sections.values()
    ]
    return bool(are_counted) and all(are_counted)


def _is_counting(llm: Mapping[str, Any] | None) -> bool:
    return llm is not None and llm["use"] == "lexical" and FALLBACK not in llm


def is_imported(journals: Mapping[str, Json]) -> bool:
    """Whether somebody else made the records, by means that are not known."""
    return any("published" in made_from for made_from in journals.values())


def prompts(run: Run, journals: Mapping[str, Json]) -> list[Prompted]:
    """By name."""
    digests: dict[str, str] = {}
    for _, made_from in _of_explanations(journals):
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
