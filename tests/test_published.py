"""Delphi's result folders as runs: what they say, what they don't, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autointerp.cli import app
from autointerp.errors import PublishedError, RunError
from autointerp.published.delphi_results import NO_EXPLANATION
from autointerp.published.importing import import_delphi
from autointerp.rescore import rescore
from autointerp.run import Run

HOOK = "layers.3"
Row = dict[str, Any]


def window(n: int, truth: bool, said: bool | int | None, *, correct: bool | None = None, **more: Any) -> Row:
    """Window number n as delphi writes one: its text is its own."""
    is_read = said in (0, 1)
    return {
        "str_tokens": [" a", f" word{n}", " é"],
        "activations": [0.0, 2.0 + n, 0.0] if truth else [0.0, 0.0, 0.0],
        "distance": n % 10 if truth else -1,
        "ground_truth": truth,
        "prediction": said,
        "probability": None,
        "correct": (said == truth if is_read else False) if correct is None else correct,
        "highlighted": False,
    } | more


def judged(n_right: int, n_false_alarms: int, n: int = 10) -> list[Row]:
    """n active windows, the first n_right called active; n silent ones, the first so many called active."""
    active = [window(at, True, at < n_right) for at in range(n)]
    return active + [window(100 + at, False, at < n_false_alarms) for at in range(n)]


def write(folder: Path, scores: dict[str, dict[int, list[Row]]], explanations: dict[int, str]) -> Path:
    (folder / "explanations").mkdir(parents=True)
    for index, text in explanations.items():
        (folder / "explanations" / f"{HOOK}_latent{index}.txt").write_text(json.dumps(text))
    for scorer, of_feature in scores.items():
        (folder / "scores" / scorer).mkdir(parents=True)
        for index, rows in of_feature.items():
            (folder / "scores" / scorer / f"{HOOK}_latent{index}.txt").write_text(json.dumps(rows))
    return folder


def test_a_result_folder_becomes_a_run_with_scores_made_anew(tmp_path: Path) -> None:
    scores = {"detection": {3: judged(8, 1), 70: judged(6, 4)}, "fuzz": {3: judged(10, 0)}}
    folder = write(tmp_path / "results", scores, {3: "words", 70: "numbers", 71: NO_EXPLANATION})
    imported = import_delphi(folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    found = {(row["feature"], row["scorer"]): row for row in run.scores().to_pylist()}
    # Balanced accuracy by hand: (8/10 + 9/10) / 2, (6/10 + 6/10) / 2, (1 + 1) / 2.
    values = {key: row["balanced_accuracy"] for key, row in found.items()}
    assert values == pytest.approx(
        {(f"{HOOK}/3", "detection"): 0.85, (f"{HOOK}/70", "detection"): 0.6, (f"{HOOK}/3", "fuzzing"): 1.0}
    )
    explained = {row["feature"]: row for row in run.features().to_pylist()}
    assert explained[f"{HOOK}/3"]["explanation"] == "words"
    assert explained[f"{HOOK}/71"]["explanation_status"] == "unreadable"
    assert any("predictions are the judge's answers" in note for note in imported.notes)
    trials = [row for row in run.trials().to_pylist() if row["feature"] == f"{HOOK}/70"]
    assert [row["truth"] for row in trials] == [True] * 10 + [False] * 10
    assert [row["answer"] for row in trials] == [True] * 6 + [False] * 4 + [True] * 4 + [False] * 6
    assert {row["offset"] for row in trials[:10]} == {1}


def test_the_run_is_shown_and_compared_without_model_or_corpus(tmp_path: Path) -> None:
    for name, n_right in (("one", 9), ("two", 7)):
        rows = {index: judged(n_right, 1) for index in range(5)}
        write(tmp_path / name, {"detection": rows}, dict.fromkeys(range(5), "words"))
        import_delphi(tmp_path / name, tmp_path / f"run-{name}")
    one, two = tmp_path / "run-one", tmp_path / "run-two"
    shown = CliRunner().invoke(app, ["show", str(one), "3"])
    assert shown.exit_code == 0, shown.output
    assert " word107 é" in shown.output
    assert "how often it fires is not known" in shown.output
    assert CliRunner().invoke(app, ["status", str(one)]).exit_code == 0
    compared = CliRunner().invoke(app, ["compare", str(one), str(two), "--same-features"])
    assert compared.exit_code == 0, compared.output
    assert "+0.100" in compared.output  # (9/10 - 7/10) / 2, of every feature


# --- what is refused --------------------------------------------------------------------------------------


def refusal(tmp_path: Path, rows: list[Row]) -> str:
    folder = write(tmp_path / "results", {"detection": {1: rows}}, {1: "words"})
    with pytest.raises(PublishedError) as caught:
        import_delphi(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_no_silent_windows_are_no_test(tmp_path: Path) -> None:
    said = refusal(tmp_path, [window(at, True, True) for at in range(12)])
    assert "no silent windows among 12" in said


def test_mostly_unreadable_answers_are_no_test(tmp_path: Path) -> None:
    rows = [window(at, at < 10, -1 if at % 10 < 6 else True) for at in range(20)]
    assert "12 of 20 answers could not be read" in refusal(tmp_path, rows)


def test_the_same_window_cannot_be_active_and_silent(tmp_path: Path) -> None:
    rows = judged(8, 1)
    rows[12]["str_tokens"] = rows[2]["str_tokens"]
    assert "2 of 20 windows stand, with the same text" in refusal(tmp_path, rows)


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "results", {"detection": {1: judged(8, 1)}}, {1: "words"})
    (folder / "scores" / "detection" / f"{HOOK}_latent1.txt").write_text("[{")
    with pytest.raises(PublishedError, match=r"latent1\.txt is not JSON"):
        import_delphi(folder, tmp_path / "run")


# --- what a prediction is ---------------------------------------------------------------------------------


def right_stored_as_answer() -> list[Row]:
    """The judge finds 8 of 10 active windows and has 1 false alarm; `prediction` holds whether it was right."""
    rows = judged(8, 1)
    for row in rows:
        row["prediction"] = row["correct"]
    return rows


def test_predictions_that_are_correctness_are_noticed_and_read_as_the_user_says(tmp_path: Path) -> None:
    """As an answer: 8 of 10 active, and 9 of 10 silent ones called active: (0.8 + 0.1) / 2."""
    folder = write(tmp_path / "results", {"detection": {1: right_stored_as_answer()}}, {1: "words"})
    with pytest.raises(PublishedError, match=r"0.450 if predictions are answers, 0.850 if they say whether"):
        import_delphi(folder, tmp_path / "run")
    import_delphi(folder, tmp_path / "right", "right")
    (row,) = Run.open(tmp_path / "right").scores().to_pylist()
    assert row["balanced_accuracy"] == pytest.approx(0.85)
    assert "read as 'right'" in row["protocol"]
    import_delphi(folder, tmp_path / "answer", "answer")
    (row,) = Run.open(tmp_path / "answer").scores().to_pylist()
    assert row["balanced_accuracy"] == pytest.approx(0.45)


def test_correctness_that_fits_neither_reading_is_told_with_its_numbers(tmp_path: Path) -> None:
    rows = judged(8, 1)
    rows[0]["correct"], rows[15]["correct"] = False, False
    assert "of 20 windows `correct` is (prediction == truth) in 18" in refusal(tmp_path, rows)


@pytest.mark.parametrize("value", ["absent", None])
def test_without_correct_nobody_can_tell_what_a_prediction_is(tmp_path: Path, value: str | None) -> None:
    """An older file of the same judge: read as answers it would be .450, and .850 is true."""
    rows = right_stored_as_answer()
    for row in rows:
        row["correct"] = None
        if value == "absent":
            del row["correct"]
    folder = write(tmp_path / "results", {"detection": {1: rows}}, {1: "words"})
    with pytest.raises(PublishedError, match=r"can't be told from the files: of 0 windows .*--prediction"):
        import_delphi(folder, tmp_path / "run")
    import_delphi(folder, tmp_path / "right", "right")
    (row,) = Run.open(tmp_path / "right").scores().to_pylist()
    assert row["balanced_accuracy"] == pytest.approx(0.85)


# --- what is not in the files, and what can be made of them -----------------------------------------------


def test_scores_that_belong_to_no_explanation_are_counted_and_nothing_is_open(tmp_path: Path) -> None:
    """Ten features judged: one explained, one whose explanation delphi could not read, eight without a file."""
    explanations = {0: "words", 1: NO_EXPLANATION}
    folder = write(tmp_path / "results", {"detection": {n: judged(8, 1) for n in range(10)}}, explanations)
    notes = import_delphi(folder, tmp_path / "run").notes
    assert "detection: scores of 8 features are left out: no explanation of them is in the files" in notes
    assert f"detection: scores of 1 features are left out: of '{NO_EXPLANATION}'" in notes
    rows = {row["feature"]: row for row in Run.open(tmp_path / "run").features().to_pylist()}
    assert rows[f"{HOOK}/5"]["explanation_status"] == "no_evidence"
    said = CliRunner().invoke(app, ["status", str(tmp_path / "run")])
    assert said.exit_code == 0 and not re.search(r"\bopen\b", said.output), said.output
    assert "refused" not in said.output


def test_a_scorer_that_lacks_features_is_not_called_unfinished(tmp_path: Path) -> None:
    scores = {"detection": {n: judged(8, 1) for n in range(3)}, "fuzz": {0: judged(9, 0)}}
    import_delphi(write(tmp_path / "results", scores, dict.fromkeys(range(3), "words")), tmp_path / "run")
    said = CliRunner().invoke(app, ["status", str(tmp_path / "run")], env={"COLUMNS": "160"})
    assert "2 not in the files it was imported from" in said.output and not re.search(
        r"\bopen\b", said.output
    )


def test_an_empty_file_is_left_out_and_counted(tmp_path: Path) -> None:
    scores = {"detection": {0: judged(8, 1), 1: [], 2: judged(8, 1)}, "fuzz": {0: []}}
    folder = write(tmp_path / "results", scores, dict.fromkeys(range(3), "words"))
    notes = import_delphi(folder, tmp_path / "run").notes
    assert "detection: 1 files hold an empty list, and are left out" in notes
    assert "fuzz is not read: all its files are empty lists" in notes
    features = [row["feature"] for row in Run.open(tmp_path / "run").scores().to_pylist()]
    assert features == [f"{HOOK}/0", f"{HOOK}/2"]


@pytest.mark.parametrize("said", [None, "answer", "right"])
def test_an_imports_numbers_are_what_rescore_makes_of_its_trials(tmp_path: Path, said: Any) -> None:
    scores = {"detection": {3: judged(8, 1), 70: judged(6, 4)}, "fuzz": {3: judged(10, 0)}}
    import_delphi(write(tmp_path / "results", scores, {3: "words", 70: "numbers"}), tmp_path / "run", said)
    found = rescore(Run.open(tmp_path / "run"))
    assert sum(one.n_records for one in found) == 3 and not any(one.changes for one in found)


def test_nobody_is_told_to_delete_scores_that_cant_be_made_again(tmp_path: Path) -> None:
    """An import of an earlier version of this program has no version in its journals."""
    import_delphi(
        write(tmp_path / "results", {"detection": {1: judged(8, 1)}}, {1: "words"}), tmp_path / "run"
    )
    (made_from,) = (tmp_path / "run" / "score").rglob("made_from.json")
    content = json.loads(made_from.read_text())
    del content["made_from"]["version"]
    made_from.write_text(json.dumps(content))
    with pytest.raises(RunError, match="Leave it as it is, and import or pack anew"):
        rescore(Run.open(tmp_path / "run"))
