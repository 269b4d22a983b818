"""Neuronpedia's files as runs, and runs as its files."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_features import N_TOKENS, Json, feature, read_rows, table, write_dashboard
from typer.testing import CliRunner

from autointerp.cli import app
from autointerp.errors import AutointerpError, PublishedError, PublishError
from autointerp.neuronpedia import bulk, layout
from autointerp.neuronpedia.bulk import export_bulk
from autointerp.neuronpedia.importing import import_neuronpedia
from autointerp.neuronpedia.naming import Asked
from autointerp.neuronpedia.pool import assumed_silent
from autointerp.neuronpedia.spelling import bytes_of
from autointerp.pack import pack
from autointerp.pipeline import prepare, run_line
from autointerp.run import Run
from autointerp.stages.sample import load_sample, load_vocabulary, unit_windows
from autointerp.types import Sample, Window
from viewed import hostile

NAME = "3-res-test"


def samples(run: Run, name: str = NAME) -> dict[str, Sample]:
    return {record["key"]: load_sample(record) for record in run.existing("sample", name).records()}


def windows(run: Run, key: str) -> dict[str, tuple[tuple[Window, ...], tuple[Window, ...]]]:
    """Active and silent ones by split."""
    store = unit_windows(run, NAME, "000000000", [key], load_vocabulary(run))[key]
    return {
        split: (of.active, of.silent)
        for split in ("shown", "select", "heldout")
        if (of := getattr(store, split)(key))
    }


def score(run: Run, **sections: Any) -> Run:
    """Explained and scored by corpus statistics, as `explain --out RUN --llm lexical` does."""
    llm = {"use": "lexical"}
    resolved, extended = prepare(
        {"llms": {"explainer": llm, "judge": llm}, "controls": None} | sections, run.path
    )
    return run_line(extended, resolved=resolved).run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 features in two files, as SAEDashboard writes them."""
    features = [feature(index) for index in range(12)]
    return write_dashboard(tmp_path_factory.mktemp("source"), [features[:5], features[5:]])


@pytest.fixture(scope="module")
def scored(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = import_neuronpedia(source, tmp_path_factory.mktemp("scored") / "run")
    return score(made.run)


# --- in ------------------------------------------------------------------------------------------------


def test_published_windows_are_split_by_text_and_cut_around_firings(scored: Run) -> None:
    found = samples(scored)
    assert [one.status for one in found.values()] == ["small"] * 12
    splits = windows(scored, f"{NAME}/3")
    documents = {name: {one.document for of in both for one in of} for name, both in splits.items()}
    assert not documents["shown"] & documents["heldout"] and not documents["select"] & documents["heldout"]
    active, silent = splits["heldout"]
    assert active and silent
    own = feature(3)["pos_str"][0]
    for one in active:
        assert len(one.texts) == 32 and own in one.texts
        assert one.activations[one.texts.index(own)] == pytest.approx(one.maximum)
    for one in silent:
        assert one.stratum == "random" and one.maximum == 0


def test_what_the_files_say_of_a_feature_is_in_its_sample(scored: Run) -> None:
    one = samples(scored)[f"{NAME}/3"]
    assert one.n_tokens == 5000 * 128 and one.n_fired == 320  # 0.0005 of 640,000
    assert one.maximum == pytest.approx(9.0)
    assert one.mean == pytest.approx((30 * 0.5 + 10 * 4.0) / 40)
    assert sum(one.histogram.values()) == 40
    row = next(row for row in scored.features().to_pylist() if row["feature"] == f"{NAME}/3")
    assert row["density"] == pytest.approx(0.0005)
    assert row["promoted"] == [feature(3)["pos_str"][0], "x"] and row["suppressed"] == [" no", "ne"]


def test_silence_on_windows_of_others_is_assumed_with_its_probability_and_said(scored: Run) -> None:
    one = samples(scored)[f"{NAME}/3"]
    assert one.assumed is not None
    assert one.assumed.p_silent == pytest.approx(0.9995**32)
    silent = [w for both in windows(scored, f"{NAME}/3").values() for w in both[1]]
    assert one.assumed.n_known + one.assumed.n_assumed == len(silent) > one.assumed.n_known
    assert all("silent ones also of other features" in row["protocol"] for row in scored.scores().to_pylist())
    for record in scored.existing("score", NAME, "plain", "detection").records():
        assert record["facts"] == {"density": 0.0005, "prevalence": None, "mass": []}
    shown = CliRunner().invoke(app, ["show", str(scored.path), "3"]).output
    assert "only assumed to be: the probability that a random window is silent is 0.984" in shown
    assert "p >= 0.9" in CliRunner().invoke(app, ["status", str(scored.path)]).output


@pytest.mark.parametrize("frac", [0.004, 1.0, None, -1])
def test_a_feature_that_fires_often_or_unknown_how_often_gets_no_window_of_others(
    frac: float | None, tmp_path: Path
) -> None:
    """0.996 ** 32 = 0.88."""
    features = [feature(index) for index in range(1, 6)]
    source = write_dashboard(tmp_path / "source", [[feature(0, frac=frac, n_silent=30), *features]])
    run = import_neuronpedia(source, tmp_path / "run").run
    one = samples(run)[f"{NAME}/0"]
    assert one.assumed is not None and one.assumed.n_assumed == 0
    own = {"".join(w["tokens"]) for w in feature(0, n_silent=30)["activations"]}
    for _, silent in windows(run, f"{NAME}/0").values():
        assert all(any(w.text in text for text in own) for w in silent)


def test_the_probability_of_silence_by_hand() -> None:
    assert assumed_silent(0.5, 3) == 0.125
    assert assumed_silent(0.0, 100) == 1.0
    assert assumed_silent(None, 3) is None and assumed_silent(-1, 3) is None


def test_text_that_a_feature_lists_is_not_silent_where_others_list_more_of_it(tmp_path: Path) -> None:
    """Feature 0 fires inside windows that feature 1 lists too, shifted by five tokens: there it is not silent."""
    zero, one = feature(0, n_silent=0), feature(1, n_windows=60, n_silent=0)
    shifted = [
        dict(w, tokens=[" q"] * 5 + w["tokens"][:-5], values=[1.0, *[0.0] * 39]) for w in zero["activations"]
    ]
    one["activations"] += shifted
    source = write_dashboard(tmp_path / "source", [[zero, one]])
    run = import_neuronpedia(source, tmp_path / "run").run
    texts = {"".join(w["tokens"]) for w in shifted}
    for _, silent in windows(run, f"{NAME}/0").values():
        assert not [w for w in silent if any(w.text in text for text in texts)]


def test_dead_features_and_few_windows_have_the_usual_statuses(tmp_path: Path) -> None:
    dead = feature(1, n_windows=0, n_silent=6, frac=0)
    unlisted = feature(2, n_windows=0, n_silent=6, frac=0.001)
    features = [feature(0), dead, unlisted, feature(3, n_windows=9), *[feature(at) for at in range(4, 8)]]
    run = import_neuronpedia(write_dashboard(tmp_path / "source", [features]), tmp_path / "run").run
    found = {key: one.status for key, one in samples(run).items()}
    assert [found[f"{NAME}/{at}"] for at in range(4)] == ["small", "dead", "too_few", "too_few"]


def test_an_imported_run_goes_on_without_model_corpus_or_source(source: Path, tmp_path: Path) -> None:
    copied = tmp_path / "source"
    copied.mkdir()
    for path in source.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    run = import_neuronpedia(copied, tmp_path / "run").run
    for path in copied.iterdir():
        path.unlink()
    result = CliRunner().invoke(app, ["resume", str(run.path)])
    assert result.exit_code == 2 and "no LLM is chosen" in result.output
    result = CliRunner().invoke(app, ["explain", "--out", str(run.path), "--llm", "lexical"])
    assert result.exit_code == 0, result.output
    extended = score(
        Run.open(run.path), explainers={"plain": {"use": "plain"}, "by_logits": {"use": "logits"}}
    )
    assert {row["explainer"] for row in extended.scores().to_pylist()} == {"plain", "by_logits"}
    for verb in (["show", str(run.path), "2"], ["view", str(run.path)], ["cache", "verify", str(run.path)]):
        result = CliRunner().invoke(app, verb)
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["publish", str(run.path), "--to", "a/b", "--dry-run"])
    assert result.exit_code == 0, result.output
    with pytest.raises(AutointerpError, match="without a model"):
        score(Run.open(run.path), model={"path": "somewhere"})
    with pytest.raises(AutointerpError, match=r"out of range|not published"):
        score(Run.open(run.path), features={"ids": ["77"]})


def test_files_in_another_order_make_the_same_run(source: Path, tmp_path: Path) -> None:
    features = [feature(index) for index in range(12)]
    other = write_dashboard(tmp_path / "source", [list(reversed(features))])
    made = [
        import_neuronpedia(folder, tmp_path / name).run for folder, name in ((source, "one"), (other, "two"))
    ]
    one, two = ({key: windows(run, key) for key in samples(run)} for run in made)
    for key in one:
        for split in one[key]:
            texts = [[[w.text for w in kind] for kind in run[key][split]] for run in (one, two)]
            assert texts[0] == texts[1]


def test_byte_level_pieces_are_read_as_text_and_exported_as_they_are(tmp_path: Path) -> None:
    zero = feature(0)
    for one in zero["activations"]:
        one["tokens"][0:3] = [" it", "âĢ", "Ļ"]
    source = write_dashboard(tmp_path / "source", [[zero, *[feature(at) for at in range(1, 5)]]])
    made = import_neuronpedia(source, tmp_path / "run")
    assert any("spell characters byte by byte" in note for note in made.notes)
    texts = [w.text for active, silent in windows(made.run, f"{NAME}/0").values() for w in (*active, *silent)]
    assert any("it’" in text for text in texts) and not any("âĢ" in text for text in texts)
    export_bulk(made.run, tmp_path / "out", Asked())
    rows = table(tmp_path / "out/tiny-model" / NAME, "activations")
    assert rows[0]["tokens"][:3] == [" it", "âĢ", "Ļ"]


@given(text=st.text(min_size=1, max_size=30), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_any_text_spelled_byte_by_byte_is_found_again(text: str, cuts: list[int]) -> None:
    from autointerp.subject.vocabulary import BYTE_OF_CHARACTER

    character_of = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    content = text.encode("utf-8", "replace")
    spelled = "".join(character_of[byte] for byte in content)
    edges = sorted({0, len(spelled), *(cut for cut in cuts if cut < len(spelled))})
    tokens = [spelled[low:high] for low, high in pairwise(edges)]
    found, was_spelled = bytes_of(tokens)
    if spelled.isascii():
        assert not was_spelled and b"".join(found) == content
    else:
        assert was_spelled and b"".join(found) == content


@given(st.lists(st.text(max_size=5), max_size=8))
def test_texts_of_tokens_are_never_lost(tokens: list[str]) -> None:
    found, was_spelled = bytes_of(tokens)
    assert len(found) == len(tokens)
    if not was_spelled:
        assert b"".join(found).decode() == "".join(tokens).encode("utf-8", "replace").decode()


def test_ordinary_text_of_many_languages_is_what_it_says() -> None:
    for tokens in ([" caf", "é"], [" Łó", "dź"], ["naïve", " —"], ["漢", "字"], [" Ġorġ", " u"], ["x", "Ê"]):
        assert bytes_of(tokens) == ([token.encode() for token in tokens], False)
    assert bytes_of(["Ê", "âĢ", "Ļ"])[1] is False  # a lead byte with another lead byte behind it


# --- faults --------------------------------------------------------------------------------------------

FAULTS: list[tuple[str, Any]] = [
    ("activations", {"tokens": 3}), ("activations", [7]), ("activations", "no"), ("frac_nonzero", "often"),
    ("pos_str", [1]), ("pos_values", ["x"]), ("neg_values", [1.0]), ("feature_index", -1), ("feature_index", 1.5),
    ("feature_index", 10**8), ("feature_index", None), ("freq_hist_data_bar_heights", ["a"]), ("frac_nonzero", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), FAULTS)
def test_a_field_of_another_type_is_one_clear_error(name: str, value: Any, tmp_path: Path) -> None:
    source = write_dashboard(tmp_path / "source", [[feature(0), feature(1) | {name: value}]])
    with pytest.raises(PublishedError) as caught:
        import_neuronpedia(source, tmp_path / "run")
    assert "batch-0.json" in str(caught.value)
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))


@pytest.mark.parametrize("value", [[1.0], [None] * N_TOKENS, ["1"] * N_TOKENS, [float("inf")] * N_TOKENS])
def test_values_that_fit_no_tokens_are_refused(value: list[Any], tmp_path: Path) -> None:
    broken = feature(0)
    broken["activations"][0]["values"] = value
    with pytest.raises(PublishedError, match=r"values"):
        import_neuronpedia(write_dashboard(tmp_path / "source", [[broken]]), tmp_path / "run")


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files_give_one_clear_error_or_a_run(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes cut off, flipped or put in, plain and gzipped."""
    folder = tmp_path_factory.mktemp("damaged")
    content = json.dumps(
        {"model_id": "m", "layer": 0, "sae_set": "s", "features": [feature(0, n_windows=3)]}
    ).encode()
    zipped = data.draw(st.booleans())
    content = bytearray(gzip.compress(content, mtime=0) if zipped else content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["cut", "flip", "put"])):
            case "cut":
                del content[at:]
                content += b" "
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case _:
                content[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    (folder / f"batch-0.json{'.gz' if zipped else ''}").write_bytes(content)
    try:
        import_neuronpedia(folder, folder / "run")
    except PublishedError:
        assert not (folder / "run").exists()


def test_what_python_writes_and_json_does_not_know_is_read(tmp_path: Path) -> None:
    """NaN, lone surrogates and numbers of any length in fields that nobody reads; a depth that nobody can keep."""
    odd = feature(0) | {"correlated_features_pearson": [float("nan"), 10**40], "note": "half \ud800"}
    source = write_dashboard(tmp_path / "source", [[odd, *[feature(at) for at in range(1, 5)]]])
    run = import_neuronpedia(source, tmp_path / "run").run
    (folder,) = export_bulk(run, tmp_path / "out", Asked()).folders
    assert table(folder, "features")[0]["correlated_features_pearson"] == [None, 1e40]
    nested: list[Any] = []
    for _ in range(500):
        nested = [nested]
    source = write_dashboard(tmp_path / "deep", [[feature(0) | {"note": nested}]])
    with pytest.raises(PublishedError, match="can't be kept"):
        import_neuronpedia(source, tmp_path / "other")


def test_folders_of_nothing_and_of_several_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PublishedError, match="no folder"):
        import_neuronpedia(tmp_path / "none", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PublishedError, match="holds nothing of Neuronpedia"):
        import_neuronpedia(tmp_path / "empty", tmp_path / "run")
    mixed = write_dashboard(tmp_path / "mixed", [[feature(0)]])
    content = json.loads((mixed / "batch-0.json").read_text()) | {"sae_set": "other"}
    (mixed / "batch-1.json").write_text(json.dumps(content))
    with pytest.raises(PublishedError, match="several sources"):
        import_neuronpedia(mixed, tmp_path / "run")
    twice = write_dashboard(tmp_path / "twice", [[feature(0)], [feature(0)]])
    with pytest.raises(PublishedError, match="twice"):
        import_neuronpedia(twice, tmp_path / "run")


# --- out -----------------------------------------------------------------------------------------------


def test_an_import_is_exported_to_the_same_fields_and_values(
    scored: Run, source: Path, tmp_path: Path
) -> None:
    check_round_trip(source, scored, tmp_path)


def check_round_trip(source: Path, run: Run, out: Path) -> None:
    """Every field of every feature and activation, under the names of Neuronpedia's tables."""
    done = export_bulk(run, out, Asked())
    (folder,) = done.folders
    rows = {row["index"]: row for row in table(folder, "features")}
    activations: dict[str, list[Json]] = {}
    for row in table(folder, "activations"):
        activations.setdefault(row["index"], []).append(row)
    read_me = {
        "n_prompts_total": "num_prompts",
        "n_tokens_in_prompt": "num_tokens_in_prompt",
        "dataset": "dataset",
    }
    said = json.loads((folder / "source.jsonl").read_text())
    n_features = 0
    for path in sorted(source.glob("batch-*")):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for theirs in json.loads(content)["features"]:
            n_features += 1
            ours = rows[str(theirs["feature_index"])]
            for name, value in theirs.items():
                if name in read_me:
                    assert said[read_me[name]] == value
                elif name not in ("feature_index", "activations"):
                    assert ours[name] == value, name
            assert ours["maxActApprox"] == max(max(w["values"]) for w in theirs["activations"])
            for one, made in zip(theirs["activations"], activations[ours["index"]], strict=True):
                for name, value in one.items():
                    assert made[layout.DASHBOARD_ACTIVATION.get(name, name)] == value, name
                assert made["maxValue"] == max(one["values"]) == one["values"][made["maxValueTokenIndex"]]
    assert n_features == len(rows)


def test_what_is_exported_is_imported_again_with_its_explanations(scored: Run, tmp_path: Path) -> None:
    (folder,) = export_bulk(scored, tmp_path / "out", Asked()).folders
    again = import_neuronpedia(tmp_path / "out", tmp_path / "again").run
    assert {key: one.heldout.bands for key, one in samples(again).items()} == {
        key: one.heldout.bands for key, one in samples(scored).items()
    }
    export_bulk(again, tmp_path / "second", Asked())
    second = tmp_path / "second/tiny-model" / NAME
    for name in ("features", "activations", "explanations"):
        assert table(second, name) == table(folder, name)


def test_explanations_that_came_along_are_scored_beside_ones_own(scored: Run, tmp_path: Path) -> None:
    """The same text on the same windows has the same score, under the id that it came with."""
    (folder,) = export_bulk(scored, tmp_path / "out", Asked()).folders
    again = import_neuronpedia(tmp_path / "out", tmp_path / "again").run
    again = score(again, explainers={"mine": {"use": "logits"}})
    values = {
        (row["feature"], row["scorer"]): row["value"]
        for row in again.scores().to_pylist()
        if row["explainer"] == "published"
    }
    expected = {(row["feature"], row["scorer"]): row["value"] for row in scored.scores().to_pylist()}
    assert values == expected and len(values) == 24
    ids = {row["id"] for row in table(folder, "explanations")}
    export_bulk(again, tmp_path / "second", Asked())
    second = tmp_path / "second/tiny-model" / NAME
    assert sum(row["explanationId"] in ids for row in table(second, "scores")) == 24
    rows = table(second, "explanations")  # counting says now what it said then: that is one explanation
    assert len(rows) == 24 and len({row["id"] for row in rows}) == 24


def test_rows_of_a_table_have_the_same_columns_and_ids_are_stable(scored: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (folder,) = export_bulk(scored, tmp_path / name, Asked(model="Tiny-Model", kind="np_max-act")).folders
        assert folder == tmp_path / name / "tiny-model" / NAME
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    for name, columns in (("features", layout.NEURON), ("activations", layout.ACTIVATION),
                          ("explanations", layout.EXPLANATION), ("scores", layout.SCORE)):  # fmt: skip
        rows = table(folder, name)
        assert rows and all(list(row) == list(columns) for row in rows)
        ids = [row["id"] for row in rows if "id" in row]
        assert len(set(ids)) == len(ids)
    assert {row["typeName"] for row in table(folder, "explanations")} == {"np_max-act"}


def test_scores_go_out_with_their_windows_and_answers(scored: Run, tmp_path: Path) -> None:
    (folder,) = export_bulk(scored, tmp_path, Asked()).folders
    records = {(row["feature"], row["scorer"]): row for row in scored.scores().to_pylist()}
    of_explanation = {row["id"]: row for row in table(folder, "explanations")}
    types = {"eleuther_recall": "detection", "eleuther_fuzz": "fuzzing"}
    rows = table(folder, "scores")
    assert len(rows) == len(records) == 24
    for row in rows:
        key = f"{NAME}/{of_explanation[row['explanationId']]['index']}"
        record = records[key, types[row["explanationScoreTypeName"]]]
        assert row["value"] == record["value"] and row["explanationScoreModelName"] == "lexical"
        details = json.loads(row["jsonDetails"])
        right = {
            truth: [one["correct"] for one in details if one["ground_truth"] is truth]
            for truth in (True, False)
        }
        by_hand = sum(sum(of) / len(of) for of in right.values()) / 2
        assert row["value"] == pytest.approx(by_hand)
        for one in details:
            assert one["text"] == "".join(one["str_tokens"])
            assert (max(one["activations"]) > 0) == one["ground_truth"] == (one["distance"] >= 0)
            assert one["correct"] == (one["prediction"] == one["ground_truth"])
            assert one["highlighted"] == (types[row["explanationScoreTypeName"]] == "fuzzing")


def test_a_second_export_makes_only_what_is_missing_or_changed(source: Path, tmp_path: Path) -> None:
    run = import_neuronpedia(source, tmp_path / "run").run
    out = tmp_path / "out"
    assert export_bulk(run, out, Asked()).n_made == 2
    assert export_bulk(run, out, Asked()).n_made == 0
    (out / "tiny-model" / NAME / "activations/batch-0.jsonl.gz").unlink()
    assert export_bulk(run, out, Asked()).n_made == 2
    run = score(run)
    done = export_bulk(run, out, Asked())
    assert done.n_made == 4 and done.n_rows["explanations"] == 12 and done.n_rows["scores"] == 24


def test_batches_hold_a_range_of_indices_and_grow_where_files_would_be_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = [feature(index) for index in (0, 255, 256, 1023, 1024, 2100)]
    run = import_neuronpedia(write_dashboard(tmp_path / "source", [features]), tmp_path / "run").run

    def numbers(out: Path) -> dict[int, list[str]]:
        (folder,) = export_bulk(run, out, Asked()).folders
        paths = (folder / "features").glob("*.gz")
        return {int(p.name[6:].split(".")[0]): [row["index"] for row in read_rows(p)] for p in paths}

    assert numbers(tmp_path / "one") == {0: ["0", "255", "256", "1023"], 1: ["1024"], 2: ["2100"]}
    monkeypatch.setattr(bulk, "MOST_FILES", 2)  # 2,101 features: three batches of 1,024 are too many, two do
    assert numbers(tmp_path / "two") == {0: ["0", "255", "256", "1023", "1024"], 1: ["2100"]}


def test_a_run_of_its_own_is_exported_with_what_it_holds(tmp_path: Path) -> None:
    from viewed import make_viewed_run

    run = make_viewed_run(tmp_path / "run", 6)
    (folder,) = export_bulk(run, tmp_path / "out", Asked()).folders
    found = samples(run, next(iter(run.recipe.dictionaries)))
    rows = {row["index"]: row for row in table(folder, "features")}
    assert len(rows) == len(found)
    for key, one in found.items():
        row = rows[key.rpartition("/")[2]]
        assert row["frac_nonzero"] == pytest.approx(one.density) and row["maxActApprox"] == one.maximum
        assert sum(row["freq_hist_data_bar_heights"]) == sum(one.histogram.values()) == one.n_fired
        assert row["logits_hist_data_bar_heights"] == []  # a run doesn't know them
    shares: dict[tuple[str, float], float] = {}
    for row in table(folder, "activations"):
        assert len(row["tokens"]) == len(row["values"]) and row["maxValue"] == max(row["values"])
        if row["binContains"] != -1:
            shares[row["index"], row["binMin"]] = row["binContains"]
            assert row["binMin"] <= row["maxValue"] <= row["binMax"] or row["binMin"] == 0
    assert shares and all(0 <= share <= 1 for share in shares.values())
    for row in table(folder, "scores"):
        assert json.loads(row["jsonDetails"])


def test_names_that_do_not_do_are_refused(scored: Run, tmp_path: Path) -> None:
    for asked in (
        Asked(model="a/b"),
        Asked(source_set="with space"),
        Asked(sources=["other=3-x"]),
        Asked(kind=" "),
    ):
        with pytest.raises(PublishError):
            export_bulk(scored, tmp_path, asked)
    (folder,) = export_bulk(scored, tmp_path, Asked(sources=["7-mine"])).folders
    assert folder.name == "7-mine" and {row["sourceSetName"] for row in table(folder, "features")} == {"mine"}
    result = CliRunner().invoke(app, ["export", str(scored.path), "--to", "elsewhere"])
    assert result.exit_code == 2 and "neuronpedia-api" in result.output


def test_a_packed_import_exports_the_same(scored: Run, tmp_path: Path) -> None:
    pack(scored, tmp_path / "packed", with_requests=False)
    for name, run in (("one", scored), ("two", Run.open(tmp_path / "packed"))):
        export_bulk(run, tmp_path / name, Asked())
    for path in (tmp_path / "one").rglob("*.gz"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_thousand_hostile_tokens_go_in_and_out_unharmed(tmp_path: Path) -> None:
    """One of them a megabyte long, one with a lone surrogate, some with NUL, which their database can't keep."""
    words = [*hostile(999), "lone \ud800 surrogate"]
    features = [feature(index) for index in range(6)]
    slots = [(w, at) for one in features for w in one["activations"] for at in range(5, 20)]
    for word, (one, at) in zip(words, slots, strict=False):
        one["tokens"][at] = word
    features[0]["pos_str"] = words[:2]
    source = write_dashboard(tmp_path / "source", [features])
    run = score(import_neuronpedia(source, tmp_path / "run").run)
    assert {row["status"] for row in run.scores().to_pylist()} == {"ok"}
    (folder,) = export_bulk(run, tmp_path / "out", Asked()).folders
    rows = table(folder, "activations")
    sent = [row["tokens"] for row in rows]
    expected = [
        [token.replace("\0", " ").replace("\ud800", "\ufffd") for token in one["tokens"]]
        for of in features
        for one in of["activations"]
    ]
    assert sent == expected
    for path in folder.rglob("*.gz"):
        content = gzip.decompress(path.read_bytes())
        assert b"\\u0000" not in content and b"\0" not in content
        content.decode()


def test_the_real_batches_import_completely_and_export_the_same(real: Path, tmp_path: Path) -> None:
    source = real / "published/neuronpedia-batch"
    if not source.is_dir():
        pytest.skip("no batches of Neuronpedia lie beside this checkout")
    made = import_neuronpedia(source, tmp_path / "run")
    assert made.notes[0].startswith("169 windows were published: 105 texts of their features, 64 that repeat")
    found = samples(made.run, "0-res-jb")
    assert {key: one.status for key, one in found.items()} == {
        "0-res-jb/0": "small", "0-res-jb/1": "dead", "0-res-jb/2": "small", "0-res-jb/3": "small",
    }  # fmt: skip
    run = score(made.run)
    assert {row["status"] for row in run.scores().to_pylist()} == {"ok"}
    check_round_trip(source, run, tmp_path / "out")
    texts = [text for one in unit_texts(run) for text in one]
    assert not any("âĢ" in text for text in texts) and any("’" in text for text in texts)


def unit_texts(run: Run) -> list[tuple[str, ...]]:
    keys = [key for key, one in samples(run, "0-res-jb").items() if one.status == "small"]
    stores = unit_windows(run, "0-res-jb", "000000000", keys, load_vocabulary(run))
    return [
        w.texts for key in keys for w in stores[key].heldout(key).active + stores[key].heldout(key).silent
    ]
