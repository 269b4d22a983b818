"""What plug-ins declare that they need: given where it can be, refused before anything starts where it can't."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from autointerp import pipeline
from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.evidence import Evidence
from autointerp.explainers.protocol import Explained
from autointerp.report.summary import summarise
from autointerp.run import Run
from autointerp.splits import Heldout
from autointerp.stages.sample import by_unit, load_vocabulary, unit_windows
from autointerp.trials import Trials
from autointerp.types import EXPLAINABLE, Json
from tiny import Tiny, make_sae

SEEN: dict[str, dict[str, Evidence]] = {}
"""By explainer, what it was given of each feature."""


@dataclass(frozen=True, slots=True)
class Noting:
    """Keeps what it is given."""

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = False

    def templates(self) -> tuple[str, ...]:
        return ()

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        SEEN.setdefault(type(self).__name__, {})[asking.feature] = evidence
        return Explained(f"{type(self).__name__} on {len(evidence.shown.active)} windows", "x")


class Bare(Noting):
    """Declares nothing."""


class Choosing(Noting):
    needs: ClassVar[frozenset[str]] = frozenset({"select", "directions"})


class Anyway(Noting):
    """Takes what there is, and explains every feature."""

    uses: ClassVar[frozenset[str]] = frozenset({"directions", "effects"})
    needs_windows: ClassVar[bool] = False


class Steered(Noting):
    needs: ClassVar[frozenset[str]] = frozenset({"effects"})


class Mistyped(Noting):
    needs: ClassVar[frozenset[str]] = frozenset({"selct"})


@dataclass(frozen=True, slots=True)
class Embedding:
    """A scorer that needs vectors."""

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"embed"})

    def templates(self) -> tuple[str, ...]:
        return ()

    def protocol(self, capabilities: object) -> str:
        return "embedding"

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Trials:
        return Trials()


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]  pytest calls it
    module = types.ModuleType("needing")
    for plugin in (Bare, Choosing, Anyway, Steered, Mistyped, Embedding):
        setattr(module, plugin.__name__, plugin)
    sys.modules["needing"] = module
    SEEN.clear()
    yield
    del sys.modules["needing"]


def recipe(made: Tiny, *explainers: str, **sections: object) -> Json:
    return made.recipe(
        features={"first": 12},
        explainers={name.lower(): {"use": f"needing:{name}"} for name in explainers},
        **sections,
    )


def test_each_gets_what_it_declares_and_nothing_else(made: Tiny, tmp_path: Path) -> None:
    run = pipeline.explain(recipe(made, "Bare", "Choosing"), out=tmp_path / "run", until="explain")
    assert SEEN["Bare"].keys() == SEEN["Choosing"].keys() and SEEN["Bare"]
    vocabulary = load_vocabulary(run)
    promoted = {row["feature"]: row["promoted"] for row in run.features().to_pylist()}
    for key, evidence in SEEN["Choosing"].items():
        assert SEEN["Bare"][key] == Evidence(evidence.shown)
        unit, _ = next(by_unit(run.asked("layers.1")))
        windows = unit_windows(run, "layers.1", unit, [key], vocabulary)[key]
        assert evidence.select == windows.select(key) and evidence.shown == windows.shown(key)
        assert evidence.directions is not None and list(evidence.directions.promoted) == promoted[key]
        assert evidence.effects is None
        held = {window.document for window in (*windows.heldout(key).active, *windows.heldout(key).silent)}
        given = (*evidence.shown.active, *evidence.shown.silent, *evidence.select.active)
        assert held and held.isdisjoint(window.document for window in given)


def test_one_that_needs_no_windows_explains_every_feature_and_the_funnel_says_what_is_not_scored(
    made: Tiny, tmp_path: Path
) -> None:
    """With a number of documents that some features reach and others don't: 84 to 86, seen on this corpus."""
    sampling = {"minimum": 20, "minimum_documents": 86}
    run = pipeline.explain(recipe(made, "Bare", "Anyway", sampling=sampling), out=tmp_path / "run")
    status = {key: record["status"] for key, record in _samples(run).items()}
    n_able = sum(one in EXPLAINABLE for one in status.values())
    assert 0 < n_able < 12
    assert len(SEEN["Bare"]) == n_able and len(SEEN["Anyway"]) == 12
    assert all(evidence.directions for evidence in SEEN["Anyway"].values())
    assert {key for key, one in SEEN["Anyway"].items() if not one.shown.active} == {
        key for key, one in status.items() if one not in EXPLAINABLE
    }
    summary = summarise(run, "layers.1")
    assert [(one.n_explained, one.n_open) for one in summary.explainers] == [(n_able, 0), (12, 0)]
    for score in summary.scores:
        ends = {"no_windows": 12 - n_able} if score.explainer == "anyway" else {}
        assert (score.n_scored, score.ends) == (n_able, ends)


def _samples(run: Run) -> dict[str, Json]:
    return {record["key"]: record for record in run.sample("layers.1").records()}


@pytest.mark.parametrize(
    ("explainer", "sections", "message"),
    [
        ("Mistyped", {}, "unknown need 'selct'. There are: select, directions, effects, hard"),
        ("Choosing", {"sampling": {"n_select": 0}}, "sampling.n_select is 0"),
    ],
)
def test_what_cant_be_had_is_told_before_anything_starts(
    made: Tiny, tmp_path: Path, explainer: str, sections: Json, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        pipeline.explain(recipe(made, explainer, **sections), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dictionary_that_writes_nothing_to_the_stream_has_no_directions(made: Tiny, tmp_path: Path) -> None:
    """Refused for one that needs them; one that only takes them goes on without."""
    make_sae(tmp_path / "sae", hook="blocks.1.mlp.hook_in")
    elsewhere: Json = {"dictionaries": {"auto": {"path": str(tmp_path / "sae")}}}
    with pytest.raises(RecipeError, match=r"'layers.1.mlp_in' aren't known: .* is read from the residual"):
        pipeline.explain(recipe(made, "Choosing", **elsewhere), out=tmp_path / "run")
    pipeline.explain(recipe(made, "Anyway", **elsewhere), out=tmp_path / "run", until="explain")
    assert {evidence.directions for evidence in SEEN["Anyway"].values()} == {None}


def test_what_an_llm_cant_do_is_told_before_the_cache(made: Tiny, tmp_path: Path) -> None:
    scorers: Json = {"vectors": {"use": "needing:Embedding"}}
    with pytest.raises(
        RecipeError, match=r"scorers\.vectors: it needs embeddings, which lexical@1 doesn't give"
    ):
        pipeline.explain(recipe(made, "Bare", scorers=scorers), out=tmp_path / "run")
    assert not (tmp_path / "run" / "cache").exists()
