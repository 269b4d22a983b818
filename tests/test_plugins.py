"""Plug-ins: each is a documented frozen dataclass in a file of its own name, and adding one is adding a file."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path

import pytest

from autointerp import pipeline, plugins
from autointerp.errors import UnknownName
from autointerp.plugins import SINGULAR, Kind, class_name, find, names
from autointerp.prompting import load_template
from autointerp.run import Run
from tiny import Tiny

ALL = [(kind, name) for kind in SINGULAR for name in names(kind)]


def test_the_shipped_ones_are_found() -> None:
    assert {"plain", "lexical"} <= set(names("explainers"))
    assert {"detection", "fuzzing"} <= set(names("scorers"))
    assert {"openai", "lexical", "scripted"} <= set(names("llm"))
    assert {"saelens", "sparsify"} <= set(names("dictionaries"))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_plugin_is_a_documented_frozen_dataclass_with_a_version(kind: Kind, name: str) -> None:
    plugin = find(kind, name)
    assert plugin.__name__ == class_name(name)
    assert dataclasses.is_dataclass(plugin) and plugin.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert isinstance(plugin.version, str) and plugin.version  # type: ignore[attr-defined]
    assert inspect.getdoc(plugin) and not inspect.getdoc(plugin).startswith(f"{plugin.__name__}(")  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "name"), [one for one in ALL if one[0] in ("explainers", "scorers")])
def test_the_prompts_a_plugin_names_exist(kind: Kind, name: str) -> None:
    for template in find(kind, name)().templates():
        assert load_template(template).turns


def test_a_wrong_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'fuzzing'"):
        find("scorers", "fuzing")


def test_an_explainer_and_a_scorer_in_a_users_file_run_in_the_line(made: Tiny, tmp_path: Path) -> None:
    """Adding one is adding one file, here even outside of the package."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent('''
            from dataclasses import dataclass
            from typing import ClassVar

            from autointerp.explainers.protocol import Explained
            from autointerp.trials import Trials


            @dataclass(frozen=True, slots=True)
            class Strongest:
                """Names the token it fires on most strongly."""

                version: ClassVar[str] = "1"
                needs_llm: ClassVar[bool] = False
                prefix: str = "fires on"

                def templates(self):
                    return ()

                async def explain(self, shown, asking):
                    window = max(shown.active, key=lambda window: window.maximum)
                    token = window.texts[window.activations.index(window.maximum)]
                    return Explained(f"{self.prefix} {token!r}", token)


            @dataclass(frozen=True, slots=True)
            class Oracle:
                """Answers right."""

                version: ClassVar[str] = "1"
                needs_llm: ClassVar[bool] = False

                def templates(self):
                    return ()

                def protocol(self, capabilities):
                    return "oracle"

                async def judge(self, explanation, heldout, asking):
                    truth = [True] * len(heldout.active) + [False] * len(heldout.silent)
                    n = len(truth)
                    nothing = [None] * n
                    return Trials(
                        list(range(n)), truth, truth, nothing, nothing, nothing, [[]] * n,
                        nothing, [""] * n, [0.0] * n, [0] * n,
                    )
        ''')
    )
    sys.path.insert(0, str(tmp_path))
    try:
        recipe = made.recipe(
            features={"n": 6},
            explainers={"top": {"use": "mine:Strongest", "prefix": "token"}},
            scorers={"oracle": {"use": "mine:Oracle"}},
        )
        run = pipeline.explain(recipe, out=tmp_path / "run")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("mine", None)
    scores = Run.open(run.path).scores().to_pydict()  # read where the plug-ins are gone
    assert set(scores["balanced_accuracy"]) == {1.0}
    assert all(text.startswith("token ") for text in run.features().to_pydict()["explanation"] if text)


def test_names_are_read_without_importing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing formats must not load torch."""
    monkeypatch.setattr(plugins.importlib, "import_module", _only_packages(plugins.importlib.import_module))
    assert names("dictionaries")


def _only_packages(real: object) -> object:
    def imported(name: str) -> object:
        assert name.count(".") == 1, f"{name} was imported to list names"
        return real(name)  # type: ignore[operator]

    return imported
