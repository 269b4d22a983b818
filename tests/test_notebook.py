"""A run as a notebook shows it."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autointerp import pipeline
from autointerp.report import notebook
from autointerp.report.summary import summarise
from autointerp.run import Run
from here import device_here
from tiny import Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
SHORT = {"contrast": "silent", "minimum": 20, "width": 8, "context_before": 3, "overlap": 8}


@pytest.fixture(scope="module")
def run(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    llms = {"explainer": SCRIPTED, "judge": SCRIPTED}
    scorers = {"detection": {"use": "detection"}}
    recipe = made.recipe(sampling=SHORT, features={"n": 6}, llms=llms, scorers=scorers, controls={"panel": 3})
    with device_here():
        return pipeline.explain(recipe, out=tmp_path_factory.mktemp("notebook") / "run")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data.strip()}"


def test_it_says_what_the_run_is_how_far_it_is_and_what_it_scores(run: Run) -> None:
    tags = Tags(run._repr_html_())
    assert not tags.open and tags.seen <= {"div", "p", "table", "tr", "td", "th", "span", "br"}
    assert tags.attributes == {"style"}
    (score,) = summarise(run, "layers.1").scores
    assert score.value is not None and score.value.low is not None
    text = re.sub(r"\s+", " ", tags.text)
    assert f"balanced accuracy {score.value.value:.3f} [{score.value.low:.3f}," in text
    assert "shuffled explanation" in text and "6 features asked for" in text and "layers.1" in text
    assert run.identities.model[:12] in text and f"explained by plain {score.n_scored}" in text


def test_text_is_escaped(run: Run, tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(run.path, hostile)
    text = Run.open(hostile)._repr_html_()
    assert "img" not in Tags(text).seen and "&lt;img" in text


def test_a_run_that_is_half_done_torn_or_large_is_shown_too(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    half = Run.open(tmp_path / "run")
    shutil.rmtree(half.path / "score")
    assert "not done yet" in half._repr_html_()
    part = next((half.path / "explain").rglob("*.jsonl"))
    part.write_bytes(part.read_bytes() + b"no record\n")
    assert str(part) in half._repr_html_()
    monkeypatch.setattr(notebook, "SUMMED_UP_TO", 5)
    assert "autointerp status" in run._repr_html_() and "balanced" not in run._repr_html_()


def test_as_text_it_is_one_line(run: Run) -> None:
    assert repr(run).startswith(f"<Run {run.path}: layers.1 on ") and "\n" not in repr(run)
    assert repr(run).endswith("; explained by plain; scored by detection>")
