"""`autointerp report`: the tables and figures of a run for a README or a paper."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib import image
from rich.console import Console
from typer.testing import CliRunner

from autointerp import pipeline, report
from autointerp.cli import app
from autointerp.errors import PackageMissing, RunError
from autointerp.journal import Part
from autointerp.llm.spending import Spent
from autointerp.published.importing import import_delphi
from autointerp.report.authors import is_counted
from autointerp.report.figures import Shown, shown
from autointerp.report.folder import write_report
from autointerp.report.plan import spending
from autointerp.report.plots import _histograms, plots
from autointerp.report.templates import dollars, markdown_template
from autointerp.run import Run
from autointerp.stages.spent import in_all
from autointerp.types import Json
from here import device_here
from test_published import judged, write
from tiny import Tiny
from viewed import HOSTILE, make_viewed_run

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
SHORT: Json = {"contrast": "silent", "minimum": 20, "width": 8, "context_before": 3, "overlap": 8}


@pytest.fixture(scope="module")
def run(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With controls, and two scorers that are set against each other."""
    recipe = made.recipe(
        sampling=SHORT,
        features={"n": 10},
        llms={"explainer": SCRIPTED, "judge": SCRIPTED},
        scorers={name: {"use": name} for name in ("detection", "fuzzing")},
        controls={"panel": 4},
    )
    with device_here():
        return pipeline.explain(recipe, out=tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def content(run: Run) -> Shown:
    return shown(run)


def copy_of(run: Run, path: Path) -> Run:
    shutil.copytree(run.path, path)
    return Run.open(path)


def test_figures_are_the_summary_and_the_scores_of_single_features(run: Run, content: Shown) -> None:
    (figures,) = content.dictionaries
    assert [one.name for one in figures.charted] == ["plain · detection", "plain · fuzzing"]
    table = run.scores().to_pylist()
    for one in figures.charted:
        rows = [row for row in table if row["scorer"] == one.score.scorer and row["value"] is not None]
        assert one.values == {row["feature"]: row["value"] for row in rows} and rows
        assert one.score.value is not None
        assert one.score.value.value == pytest.approx(np.mean(list(one.values.values())))
    assert {one.control for one in figures.charted[0].beside} >= {"shuffled explanation", "top-token list"}
    assert [(one.score.scorer, other.score.scorer) for one, other in figures.pairs()] == [
        ("detection", "fuzzing")
    ]
    assert [step.n for step in figures.steps][:3] == [
        10,
        figures.summary.n_alive,
        figures.summary.n_explainable,
    ]


def test_the_bars_of_a_histogram_are_the_features(content: Shown) -> None:
    """Drawn in 25 bins from 0 to 1: bin 12 holds 0.48 to 0.52."""
    (figures,) = content.dictionaries
    one = dataclasses.replace(
        figures.charted[0], values=dict(zip("abcd", [0.0, 0.5, 0.51, 1.0], strict=True))
    )
    drawn = _histograms(dataclasses.replace(figures, charted=[one]))
    heights = [bar.get_height() for bar in drawn.axes[0].patches]
    assert heights == [1, *[0] * 11, 2, *[0] * 11, 1]
    assert one.score.value is not None and one.score.chance is not None
    controls = [control.mean.value for control in one.beside if control.mean]
    lines = [line.get_xdata()[0] for line in drawn.axes[0].lines]
    assert lines == [one.score.value.value, one.score.chance, *controls] and controls


def test_plots_are_1600_pixels_wide_and_the_same_bytes_again(content: Shown) -> None:
    first, again = (list(plots(content)) for _ in range(2))
    assert [name for name, _, _ in first] == [
        "funnel.png",
        "scores.png",
        "density.png",
        "pairs.png",
        "deciles.png",
    ]
    assert first == again
    for name, _, png in first:
        pixels = image.imread(io.BytesIO(png))
        assert pixels.shape[1] == 1600 and pixels.std() > 0.02, name  # something is on it
        assert b"matplotlib" not in png.lower()


def test_what_was_spent_is_drawn_where_there_is_something(content: Shown) -> None:
    spent = {"explain/layers.1/plain": Spent(10, 5_000, 1_000, 0, 800, 0, 0.25, 0)}
    names = [name for name, _, _ in plots(dataclasses.replace(content, spent=spent))]
    assert names[-1] == "spent.png"
    unpriced = {"explain/layers.1/plain": Spent(10, 5_000, 1_000, 0, 800, 0, 0.0, 10)}
    names = [name for name, _, _ in plots(dataclasses.replace(content, spent=unpriced))]
    assert names[-1] == "spent.png"
    assert [dollars(one["explain/layers.1/plain"]) for one in (spent, unpriced)] == ["0.2500", "unknown"]


@pytest.mark.parametrize(("n_askers", "n_rows"), [(0, 0), (1, 1), (2, 3)])
def test_what_a_kill_left_is_told_below_the_table_and_makes_no_row(n_askers: int, n_rows: int) -> None:
    """Each asker has a row, and two have one of their sum; where there is none there are no headings."""
    spent = {f"asker {n}": Spent(10, 5_000, completion_tokens=800, cost=0.25) for n in range(n_askers)}
    spent["cut-off"] = Spent(aside_tokens=1_001, aside_cost=0.00101)
    said = Console(width=200, record=True, file=io.StringIO())
    said.print(spending(spent))
    text = said.export_text()
    tables = markdown_template(Path(report.__file__).parent / "report.md.jinja").environment
    markdown: str = tables.get_template("tables.md.jinja").module.spending(spent, in_all(spent))
    for lines in (text.splitlines(), markdown.splitlines()):
        assert sum("0.2500" in one or "0.5000" in one for one in lines) == n_rows
        assert any("requests" in one for one in lines) == bool(n_askers)
        assert any("cut-off" in one for one in lines) is False
    assert "up to 1,001 tokens ($0.0010) more" in " ".join(text.split())
    assert "up to 1,001 tokens (0.0010 US dollars) more." in markdown
    assert any("all" in one.split()[:2] for one in text.splitlines()) == (n_askers > 1)


def test_many_features_are_drawn_as_cells(content: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clouds of points look otherwise, everything else as before."""
    points = {name: png for name, _, png in plots(content)}
    monkeypatch.setattr("autointerp.report.plots._POINTS_UP_TO", 3)
    cells = {name: png for name, _, png in plots(content)}
    assert {name for name in points if points[name] != cells[name]} == {"density.png", "pairs.png"}


def test_report_holds_every_table_and_names_the_images_beside_it(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run.path), "--out", str(tmp_path / "report")])
    assert done.exit_code == 0 and "(5 plots)" in done.output and "Not finished" not in done.output
    text = (tmp_path / "report" / "report.md").read_text()
    named = set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", text))
    assert named == {path.name for path in (tmp_path / "report").glob("*.png")} and len(named) == 5
    mean = run_mean(run, "detection")
    assert f"| plain | detection | {mean[1]} | balanced accuracy | {mean[0]:.3f} [" in text
    for heading in ("Controls", "How far it got", "What it says", "Scores in full", "What was explained"):
        assert f"## {heading}" in text
    assert "shuffled explanation" in text and "Not finished" not in text
    assert str(run.path.parent) not in text


def run_mean(run: Run, scorer: str) -> tuple[float, int]:
    values = [row["value"] for row in run.scores().to_pylist() if row["scorer"] == scorer]
    known = [value for value in values if value is not None]
    return float(np.mean(known)), len(known)


def test_a_report_is_replaced_and_nothing_else_is(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report(run, out)
    written = write_report(run, out, with_plots=False)
    assert [path.name for path in out.iterdir()] == ["report.md"] and written.images == []
    (out / "thesis.tex").write_text("years")
    with pytest.raises(RunError, match="holds other things"):
        write_report(run, out, with_plots=False)
    assert (out / "thesis.tex").read_text() == "years"


def test_without_matplotlib_the_extra_is_named_and_tables_can_be_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "autointerp.report.folder.find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    with pytest.raises(PackageMissing, match=r"pip install '\.\[plots\]'.*--no-plots"):
        write_report(run, tmp_path / "report")
    assert not (tmp_path / "report").exists()
    done = CliRunner().invoke(app, ["report", str(run.path), "--out", str(tmp_path / "report"), "--no-plots"])
    assert done.exit_code == 0 and "![" not in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize("missing", [("score", "control"), ("score", "control", "explain"), ("sample",)])
def test_a_run_that_is_not_done_says_how_far_it_is(
    run: Run, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    half = copy_of(run, tmp_path / "run")
    after = {"sample": ("sample", "explain", "score", "control")}
    for stage in after.get(missing[0], missing):
        shutil.rmtree(half.path / stage)
    written = write_report(half, tmp_path / "report")
    text = written.report.read_text()
    assert written.n_open > 0 and f"**Not finished**: {written.n_open:,} steps are open" in text
    assert [path.name for path in written.images] == ["funnel.png"]
    assert "No feature is scored yet." in text and "None were run" in text
    if missing == ("sample",):
        assert written.n_open == 10 and "| asked for | 10 | 10 not done yet |" in text


def test_it_says_who_explained_whoever_judged(tmp_path: Path) -> None:
    """Corpus statistics, an explainer that asks nobody, an LLM; told from the records or, before there are any, from
    the recipe."""
    counted, asked = "as said by statistics of tokens (no LLM)", "as said by an LLM"
    lexical, model = {"use": "lexical"}, SCRIPTED | {"model": "m"}
    plain, tokens = {"plain": {"use": "plain"}}, {"tokens": {"use": "top_tokens"}}
    cases: list[tuple[Json, Json, Json, str]] = [
        (plain, lexical, model, counted),
        (plain, model, lexical, asked),
        (plain, lexical | {"fallback": model}, lexical, asked),
        (tokens, model, model, counted),
        (plain | tokens, model, lexical, asked),
    ]
    for number, (explainers, explainer, judge, said) in enumerate(cases):
        llms = {"explainer": explainer, "judge": judge}
        scorers = {"detection": {"use": "detection"}}
        run = make_viewed_run(tmp_path / f"run{number}", 4, llms=llms, explainers=explainers, scorers=scorers)
        for stage in ("score", "explain"):
            text = write_report(run, tmp_path / f"report{number}", with_plots=False).report.read_text()
            assert said in text, (number, stage)
            shutil.rmtree(run.path / stage)
        text = write_report(run, tmp_path / f"report{number}", with_plots=False).report.read_text()
        assert said in text, number
    nobody = dataclasses.replace(run.recipe, explainers={})
    assert not is_counted({}, nobody), "where scores need no explanation nobody counts tokens"


def test_explanations_from_outside_are_inert(run: Run, tmp_path: Path) -> None:
    told = copy_of(run, tmp_path / "run")
    journal = told.existing("explain", "layers.1", "plain")
    (unit,) = journal.units()
    records = list(journal.read(unit).items())
    hostile = [*HOSTILE, "![x](https://evil.example/x.png)", "[a](javascript:b)", "| a | b |", "`x`", "# T"]
    shutil.rmtree(journal.folder)
    for start in range(0, len(hostile), len(records)):
        texts = hostile[start : start + len(records)]
        with Part(told.explain("layers.1", "plain"), unit) as part:
            for (key, record), text in zip(records, [*texts, *["words"] * len(records)], strict=False):
                part.append(
                    key, {name: value for name, value in record.items() if name != "key"} | {"text": text}
                )
        text = write_report(told, tmp_path / "report", with_plots=False).report.read_text()
        shutil.rmtree(journal.folder)
        parsed = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)
        kinds = [token.type for block in parsed for token in (block, *(block.children or []))]
        assert not {"image", "link_open", "html_block", "html_inline"} & set(kinds)
        headings = [block.content for block in parsed if block.type == "inline" and block.content == "T"]
        assert not headings
        rows = [line for line in text.splitlines() if line.startswith("| `layers.1/")]
        n_columns = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
        assert len(rows) == 8 and len(n_columns) == 1


def test_imported_results_have_a_report_too(tmp_path: Path) -> None:
    scores = {"detection": {3: judged(8, 1), 70: judged(6, 4)}, "fuzz": {3: judged(10, 0), 70: judged(5, 5)}}
    folder = write(tmp_path / "results", scores, {3: "words", 70: "numbers"})
    imported = import_delphi(folder, tmp_path / "run").run
    written = write_report(imported, tmp_path / "report")
    names = [path.name for path in written.images]
    assert names == ["funnel.png", "scores.png", "density.png", "pairs.png", "deciles.png"]
    text = written.report.read_text()
    assert "somebody's published explanations" in text and "Not finished" not in text


def test_scorers_are_set_against_each_other_whatever_they_are_called(tmp_path: Path) -> None:
    """Every instance of detection against every one of fuzzing, of one explainer at a time."""
    scorers = {
        "detection": {"use": "detection"},
        "short": {"use": "detection", "packing": 5},
        "fuzz2": {"use": "fuzzing"},
        "fuzzing": {"use": "intruder"},  # called like another
    }
    run = make_viewed_run(tmp_path / "run", 4, scorers=scorers)
    [figures] = shown(run).dictionaries
    found = [
        (one.score.explainer, one.score.scorer, other.score.explainer, other.score.scorer)
        for one, other in figures.pairs()
    ]
    assert found == [
        (explainer, detection, explainer, "fuzz2")
        for explainer in ("plain", "top_tokens")
        for detection in ("detection", "short")
    ]
    assert "pairs.png" in [name for name, _, _ in plots(shown(run))]


def test_two_dictionaries_have_a_figure_each(run: Run, content: Shown) -> None:
    (figures,) = content.dictionaries
    other = dataclasses.replace(figures, summary=dataclasses.replace(figures.summary, dictionary="layers.2"))
    names: list[Any] = [name for name, _, _ in plots(Shown([figures, other], {}))]
    assert (
        names[0] == "funnel-layers.1.png"
        and "scores-layers.2.png" in names
        and len(names) == len(set(names)) == 10
    )
