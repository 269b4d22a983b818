"""Explainers, and a scorer to choose by, that stand in another explainer's section of the recipe."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autointerp.errors import RecipeError
from autointerp.evidence import Evidence, needs_explanation, needs_of, uses_of
from autointerp.explainers.protocol import Explainer
from autointerp.plugins import Kind
from autointerp.scorers.protocol import Scorer
from autointerp.sections import PluginSection, instance
from autointerp.types import digest


@dataclass(frozen=True, slots=True)
class Held:
    """What an explainer that holds others declares in their stead."""

    explainers: Mapping[str, Explainer]
    """By name."""
    scorer: Scorer

    @property
    def version(self) -> str:
        """Changes with the version and every option of each, also those that the recipe leaves at their default."""
        plugins: list[Any] = [*self.explainers.values(), self.scorer]
        return digest(
            [(type(plugin).__name__, plugin.version, dataclasses.asdict(plugin)) for plugin in plugins]
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset[str]().union(*map(needs_of, self.explainers.values()))

    @property
    def uses(self) -> frozenset[str]:
        return frozenset[str]().union(*map(uses_of, self.explainers.values()))

    def templates(self) -> tuple[str, ...]:
        names = (name for plugin in (*self.explainers.values(), self.scorer) for name in plugin.templates())
        return tuple(dict.fromkeys(names))

    def evidence(self, name: str, given: Evidence) -> Evidence:
        """What one of them would be given if it stood alone."""
        return given.only(uses_of(self.explainers[name]))


class OnSelectWindows(ABC):
    """An explainer that holds others and chooses by the *select* windows: it needs and uses what they do, and is
    another one when one of them is."""

    __slots__ = ()

    chooses: ClassVar[bool] = True

    @abstractmethod
    def inner(self) -> Held:
        """Raises RecipeError."""

    @property
    def version(self) -> str:
        return f"1 with {self.inner().version}"

    @property
    def needs(self) -> frozenset[str]:
        return self.inner().needs | {"select"}

    @property
    def uses(self) -> frozenset[str]:
        return self.inner().uses


def inner_explainer(place: str, section: PluginSection) -> Explainer:
    """Raises RecipeError that names the place."""
    return _inner("explainers", place, section)


def inner_scorer(place: str, section: PluginSection) -> Scorer:
    """Raises RecipeError that names the place, also for one that needs what only the score stage has."""
    scorer: Scorer = _inner("scorers", place, section)
    if not needs_explanation(scorer):
        raise RecipeError(
            f"{place}: it looks at no explanation, so it can't choose. Use e.g. {{use: detection}}."
        )
    if needs := needs_of(scorer):
        raise RecipeError(
            f"{place}: it needs {', '.join(sorted(needs))}, which is not there where explanations are chosen. "
            "Use one that needs windows alone, e.g. {use: detection}."
        )
    return scorer


def _inner(kind: Kind, place: str, section: PluginSection) -> Any:
    try:
        return instance(kind, section)
    except RecipeError as error:
        raise RecipeError("\n".join(f"{place}: {line}" for line in str(error).splitlines())) from error
