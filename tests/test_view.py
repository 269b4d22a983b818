"""The explorer's folder: what it holds is what the run holds, and nothing in it can run but our own scripts."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from autointerp import floors, spread
from autointerp.bench.made_up_run import DICTIONARY, make_run
from autointerp.cli import app
from autointerp.errors import RunError
from autointerp.floors import Floor, Row
from autointerp.journal import unit_of_feature
from autointerp.metrics import MeanOver
from autointerp.panel import panel_of
from autointerp.pipeline import run_line
from autointerp.run import Run
from autointerp.scored import Instance
from autointerp.stages.sample import load_vocabulary, unit_windows
from autointerp.trials import (
    AnyTrials,
    Choices,
    Differences,
    InBlocks,
    Predictions,
    Ranked,
    Responses,
    Trials,
    record,
)  # fmt: skip
from autointerp.types import FeatureId, Json, Window
from autointerp.view import folder as view_folder
from autointerp.view import page as view_page
from autointerp.view.columns import decimals
from autointerp.view.folder import write_folder
from autointerp.view.packed import LONGEST, cut, packed
from autointerp.view.windows import chosen, entry, missed, trials_entry
from viewed import BREAKS_OUT, data_of, features_of, hostile, make_viewed_run, unpacked

N = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run with hostile text in its vocabulary, and its folder of data beside the page."""
    folder = tmp_path_factory.mktemp("view")
    run = make_viewed_run(folder / "run", N, hostile(1_000))
    write_folder(run, folder / "page", single=False)
    return run, folder / "page"


# --- what the data hold -------------------------------------------------------------------------------------


def array(column: Json) -> list[float]:
    raw = base64.b64decode(column["data"])
    if column["kind"] != "decimal":
        return np.frombuffer(raw, f"<{column['kind']}").tolist()
    scaled = np.frombuffer(raw, "<i2").tolist()
    return [math.nan if one == -(2**15) else one / 10 ** column["digits"] for one in scaled]


def test_the_index_has_a_row_a_feature_with_what_the_tables_say(made: tuple[Run, Path]) -> None:
    run, folder = made
    data = data_of(folder)
    [index], [texts] = data["index"], data["texts"]
    features = {(row["feature"], row["explainer"]): row for row in run.features().to_pylist()}
    scores = {(row["feature"], row["explainer"], row["scorer"]): row for row in run.scores().to_pylist()}
    keys = [f"{DICTIONARY}/{number * 128}" for number in range(N)]
    assert index["n"] == N
    assert [f"{DICTIONARY}/{number:.0f}" for number in array(index["number"])] == keys
    for one, said in zip(index["explained"], texts, strict=True):
        rows = [features[key, one["explainer"]] for key in keys]
        assert one["labels"] == [cut(row["label"] or "") for row in rows]
        assert said == [cut(row["explanation"] or "") for row in rows]
    density = [features[key, "plain"]["density"] for key in keys]
    assert array(index["density"]) == pytest.approx(density, rel=1e-6)
    assert {(one["explainer"], one["scorer"]) for one in index["scored"]} == set(run.scored())
    for one in index["scored"]:
        rows = [scores[key, one["explainer"], one["scorer"]] for key in keys]
        for name, end in (("value", ""), ("low", "_low"), ("high", "_high")):
            known = [row[f"value{end}"] for row in rows]
            expected = [math.nan if value is None else value for value in known]
            assert array(one[name]) == pytest.approx(expected, abs=5e-5, nan_ok=True)
        assert one["scorer"] != "detection" or not math.isnan(array(one["value"])[0])


def test_a_feature_holds_its_windows_as_the_store_has_them(made: tuple[Run, Path]) -> None:
    run, folder = made
    vocabulary = load_vocabulary(run)
    for feature in features_of(folder):
        key = feature["id"]
        unit = unit_of_feature(FeatureId.parse(key).index)
        heldout = unit_windows(run, DICTIONARY, unit, [key], vocabulary)[key].heldout(key)
        windows = [*heldout.active, *heldout.silent]
        assert feature["n_windows"]["heldout"] == len(windows) == len(feature["windows"]["heldout"])
        for at, (found, window) in enumerate(zip(feature["windows"]["heldout"], windows, strict=True)):
            assert found["at"] == at
            if len(window.text) <= LONGEST:
                assert tuple(found["tokens"]) == window.texts
            values = dict(zip(found["places"], found["values"], strict=True))
            known = {place: value for place, value in enumerate(window.activations) if value}
            assert values == pytest.approx(known, rel=1e-3)


def test_a_trial_says_fires_of_a_window_that_fires(made: tuple[Run, Path]) -> None:
    """By `window` the page finds a trial's text: the truth of detection is whether anything in it is shaded, or, of
    a feature that fires nearly everywhere, whether it has a decile."""
    n = 0
    for feature in features_of(made[1]):
        windows = {one["at"]: one for one in feature["windows"]["heldout"]}
        for score in feature["scores"]:
            if score["scorer"] == "detection":
                for window, truth in zip(score["trials"]["window"], score["trials"]["truth"], strict=True):
                    found = windows[window]
                    is_graded = score["contrast"] == "graded"
                    assert truth == (found["band"] is not None if is_graded else bool(found["places"]))
                    n += 1
    assert n >= 2 * N * 30


def test_one_file_and_a_folder_hold_the_same(made: tuple[Run, Path], tmp_path: Path) -> None:
    run, folder = made
    found = write_folder(run, tmp_path / "one")  # small: one file unless told otherwise
    assert (found.n_files, found.n_features) == (1, N)
    assert data_of(tmp_path / "one") == data_of(folder)


def test_shards_are_ranges_of_rows(
    made: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_folder, "FEATURES_A_SHARD", 2)
    write_folder(made[0], tmp_path / "page", single=False)
    data = data_of(tmp_path / "page")
    assert {name: len(content) for name, content in data.items()} == {
        "index": 1,
        "texts": 1,
        "s00000": 2,
        "s00001": 2,
        "s00002": 1,
    }
    assert data["index"][0]["features_a_shard"] == 2
    assert features_of(tmp_path / "page") == features_of(made[1])


def test_a_large_run_has_no_more_shards_but_larger_ones(
    made: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_folder, "FEATURES_A_SHARD", 1)
    monkeypatch.setattr(view_folder, "MOST_SHARDS", 2)
    write_folder(made[0], tmp_path / "page", single=False)
    data = data_of(tmp_path / "page")
    assert data["index"][0]["features_a_shard"] == 4  # 1 and 2 give five shards and three
    assert {name: len(found) for name, found in data.items() if name[0] == "s"} == {"s00000": 4, "s00001": 1}


def test_processes_give_the_same_bytes(
    made: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5 features in pieces of one or two; each piece in one of two processes."""
    monkeypatch.setattr(spread, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(spread, "FEATURES_A_BUNDLE", 1)
    for jobs in (1, 2):
        write_folder(made[0], tmp_path / str(jobs), single=False, jobs=jobs)
    assert content_of(tmp_path / "1") == content_of(tmp_path / "2")
    assert content_of(tmp_path / "1").keys() >= {"index.html", "data/index.js", "data/s00000.js"}


def content_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_windows_of_some_places_are_those_of_the_whole_split(made: tuple[Run, Path]) -> None:
    run, _ = made
    key = str(run.asked(DICTIONARY)[0])
    unit = unit_of_feature(FeatureId.parse(key).index)
    store = unit_windows(run, DICTIONARY, unit, [key], load_vocabulary(run))[key]
    heldout = store.heldout(key)
    whole = [*heldout.active, *heldout.silent]
    assert store.cells(key, "heldout") == [one.stratum or one.band for one in whole]
    for at in (list(range(len(whole))), [0, 3, len(whole) - 1], list[int]()):
        assert store.windows(key, "heldout", at) == [whole[place] for place in at]


def test_with_fewer_windows_every_trial_stays(made: tuple[Run, Path], tmp_path: Path) -> None:
    write_folder(made[0], tmp_path / "page", n_windows=11)
    for few, all_of_it in zip(features_of(tmp_path / "page"), features_of(made[1]), strict=True):
        for split in ("shown", "heldout"):
            assert all(one in all_of_it["windows"][split] for one in few["windows"][split])
        assert len(few["windows"]["shown"]) == 11 < few["n_windows"]["shown"]
        assert 11 <= len(few["windows"]["heldout"]) <= 3 * 11
        # One of each decile before a second of any.
        assert {one["band"] for one in few["windows"]["heldout"]} >= set(range(10))
        assert few["scores"] == all_of_it["scores"]


def test_the_card_has_the_funnel_the_means_and_the_controls(made: tuple[Run, Path], tmp_path: Path) -> None:
    run = made[0]
    mean = MeanOver(0.5, 0.4, 0.6, 9)
    floor = Floor("random model", mean, 9, None)
    floors.save(run, [Row(Instance(DICTIONARY, "plain", "detection"), "balanced_accuracy", mean, N, [floor])])
    write_folder(run, tmp_path / "page")
    (run.path / floors.CONTROLS).unlink()
    card = data_of(tmp_path / "page")["index"][0]["card"]
    [summary] = card["summaries"]
    assert (summary["n_asked"], summary["n_sampled"], summary["n_alive"]) == (N, N, N)
    table = [
        row["value"]
        for row in run.scores().to_pylist()
        if (row["explainer"], row["scorer"]) == ("plain", "detection")
    ]
    [real] = [one for one in summary["scores"] if (one["explainer"], one["scorer"]) == ("plain", "detection")]
    assert real["value"]["value"] == pytest.approx(sum(table) / len(table))
    [[found]] = [row["floors"] for row in summary["floors"]]
    assert (found["control"], found["mean"]["value"]) == ("random model", 0.5)
    assert card["llms"]["judge"] == {"use": "lexical"}


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run whose panel is 3 of 5 features, and that had another panel before: its page."""
    folder = tmp_path_factory.mktemp("controlled")
    settings: Json = {"kinds": ["shuffled", "top_tokens"], "panel": 2}
    run = make_viewed_run(folder / "run", N, controls=settings)
    recipe = dataclasses.replace(run.recipe, controls=dataclasses.replace(run.recipe.controls, panel=3))
    run = Run(run.path, recipe, run.identities)
    run.save()
    run_line(run)
    write_folder(run, folder / "page")
    return run, folder / "page"


def test_a_feature_has_the_scores_of_its_own_controls(controlled: tuple[Run, Path]) -> None:
    """Of shuffled explanations those of the panel, with whom borrows now; of a list that an explainer of the run
    writes those of all."""
    run, folder = controlled
    panel = panel_of(run.recipe, run.identities, DICTIONARY, run.existing("sample", DICTIONARY))
    lenders = dict(zip(panel, [*panel[1:], panel[0]], strict=True))
    assert len(panel) == 3
    n_stale = 0
    for feature in features_of(folder):
        key = feature["id"]
        unit = unit_of_feature(FeatureId.parse(key).index)
        for score in feature["scores"]:
            found = {one["name"]: one for one in score["controls"]}
            explainer, scorer = score["explainer"], score["scorer"]
            if scorer == "intruder":  # it needs no explanation
                assert not found
                continue
            lent = run.existing("control", DICTIONARY, "shuffled", explainer, scorer).read(unit)
            n_stale += sum(one.startswith(f"{key}<") for one in lent) - (key in lenders)
            if key in lenders:
                shuffled = found.pop("shuffled explanation")
                record = lent[f"{key}<{lenders[key]}"]["metrics"]
                assert shuffled["lender"] == lenders[key]
                assert (shuffled["value"], shuffled["n"]) == (
                    record["values"][record["headline"]],
                    record["n"],
                )
            if explainer == "plain":
                record = run.existing("score", DICTIONARY, "top_tokens", scorer).read(unit)[key]["metrics"]
                assert found.pop("top-token list")["value"] == record["values"][record["headline"]]
            assert not found
    assert n_stale > 0


def test_scores_that_may_have_stopped_early_are_told_apart(tmp_path: Path) -> None:
    """Those that a sequential test judged outside its panel: plots leave them out, as means do."""
    scorers: Json = {
        "detection": {"use": "detection", "sequential": {"blocks": [4, 8, 12], "panel": 0.5}},
        "fuzzing": {"use": "fuzzing"},
    }
    run = make_viewed_run(tmp_path / "run", N, scorers=scorers)
    write_folder(run, tmp_path / "page")
    [index] = data_of(tmp_path / "page")["index"]
    keys = [str(feature) for feature in run.asked(DICTIONARY)]
    for one in index["scored"]:
        if one["scorer"] == "fuzzing":
            assert one["early"] is None
            continue
        journal = run.existing("score", DICTIONARY, one["explainer"], "detection")
        records = {key: journal.read(unit_of_feature(FeatureId.parse(key).index))[key] for key in keys}
        expected = [not records[key]["sequential"]["in_panel"] for key in keys]
        assert array(one["early"]) == expected and 0 < sum(expected) < N
        [summary] = index["card"]["summaries"]
        [score] = [
            score for score in summary["scores"]
            if (score["explainer"], score["scorer"]) == (one["explainer"], "detection")
        ]  # fmt: skip
        kept = [value for value, early in zip(array(one["value"]), expected, strict=True) if not early]
        assert score["value"]["value"] == pytest.approx(np.mean(kept), abs=1e-4)


# --- numbers and texts --------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-1e4, 1e4)), min_size=1))
def test_decimals_are_near_and_say_what_is_missing(values: list[float]) -> None:
    column = decimals(values)
    assert column["digits"] <= 4
    for one, found in zip(values, array(column), strict=True):
        assert (
            math.isnan(found)
            if math.isnan(one)
            else abs(found - one) <= 0.5000001 * 10.0 ** -column["digits"]
        )


def test_a_score_of_two_digits_is_kept_exactly() -> None:
    values = [at / 100 for at in range(101)]
    assert array(decimals(values)) == values


def window(band: int | None, stratum: str | None = None) -> Window:
    activations = (0.0, 1.23456) if stratum is None else (0.0, 0.0)
    return Window("00" * 8, 0, (1, 2), ("a", "b"), activations, band, stratum)  # type: ignore[arg-type]  any name


def test_windows_are_chosen_one_of_each_group_after_another() -> None:
    cells = [0] * 3 + [1] * 2 + ["random"] * 3
    assert chosen(cells, None) == chosen(cells, 8) == list(range(8))
    assert chosen(cells, 3) == [0, 3, 5]
    assert chosen(cells, 5) == [0, 1, 3, 4, 5]
    assert chosen(cells, 7) == [0, 1, 2, 3, 4, 5, 6]


def test_windows_that_judges_got_wrong_are_kept_beside_those() -> None:
    cells = [0] * 6 + [1] * 6
    assert chosen(cells, 2) == [0, 6]
    # 0 is there already; of the others four, the first ones.
    assert chosen(cells, 2, [11, 0, 3, 2, 9, 10]) == [0, 2, 3, 6, 9, 11]
    assert chosen(cells, None, [11]) == list(range(12))


def test_windows_of_most_wrong_and_unreadable_trials_come_first() -> None:
    judged: Json = {
        "kind": "judged", "window": [4, 7, 2, 5], "truth": [True, False, True, False],
        "answer": [False, False, None, True],
    }  # fmt: skip
    blocks: Json = {"kind": "judged in blocks", "window": [7, 5], "truth": [True, True]}  # nothing readable
    ranked: Json = {"kind": "ranked", "window": [1, 8], "truth": [True, False], "value": [0.2, None]}
    predicted: Json = {
        "kind": "predicted",
        "window": [9, 3, None],
        "predicted": [[0.0, None], [None] * 2, [None]],
    }
    chosen_of: Json = {"kind": "chosen", "right": [0], "chosen": [1]}
    # Wrong: 4 and 5, 7 and 5 in blocks. Unreadable: 2, 8 and 3.
    assert missed([judged, blocks, ranked, predicted, chosen_of]) == [5, 2, 3, 4, 7, 8]


def test_wrong_trials_of_a_large_run_can_be_read(made: tuple[Run, Path], tmp_path: Path) -> None:
    """With 4 windows of each split, and 8 more, the text of no fewer wrong trials is there than of any other 8."""
    write_folder(made[0], tmp_path / "page", n_windows=4)
    n_read = 0
    for few, all_of_it in zip(features_of(tmp_path / "page"), features_of(made[1]), strict=True):
        n_wrong = Counter[int]()
        for score in all_of_it["scores"]:
            trials = score["trials"]
            if trials["kind"] == "judged":
                answers = zip(trials["window"], trials["truth"], trials["answer"], strict=True)
                n_wrong.update(at for at, truth, answer in answers if answer != truth)
        kept = {one["at"] for one in few["windows"]["heldout"]}
        left_out = [n_wrong[at] for at in n_wrong if at not in kept]
        assert len(kept) == 4 + min(8, len(n_wrong.keys() - set(chosen_by_cell(all_of_it, 4))))
        most = sorted((n_wrong[at] for at in kept - set(chosen_by_cell(all_of_it, 4))), reverse=True)
        assert max(left_out, default=0) <= min(most, default=0)
        n_read += sum(n_wrong[at] for at in kept)
    assert n_read > 0


def chosen_by_cell(feature: Json, n: int) -> list[int]:
    """Places of held-out windows without looking at trials."""
    return chosen([one["stratum"] or one["band"] for one in feature["windows"]["heldout"]], n)


def test_predictions_find_the_window_that_they_are_of() -> None:
    windows = [window(0), window(None, "random")]
    trials: Json = {
        "kind": "predicted", "predicted": [[0.0, 1.0], [1.0, None], [0.0, 0.0]],
        "actual": [[0.0, 0.0], [0.0, 1.235], [5.0, 5.0]], "band": [None, 0, None],
        "stratum": ["random", None, None], "document": ["00000000"] * 3,
    }  # fmt: skip
    assert trials_entry(trials, lambda: windows)["window"] == [1, 0, None]


def test_columns_without_content_are_left_out_and_those_without_trials_are_not() -> None:
    trials: Json = {
        "kind": "judged",
        "window": [0],
        "truth": [False],
        "answer": [None],
        "marks": [[]],
        "document": ["x"],
    }
    assert trials_entry(trials, list) == {"kind": "judged", "window": [0], "truth": [False]}
    assert trials_entry({"kind": "judged", "truth": [], "document": []}, list) == {
        "kind": "judged",
        "truth": [],
    }


def test_every_kind_of_trials_has_its_rows_in_the_page_and_only_columns() -> None:
    script = (Path(view_page.__file__).parent / "assets" / "trials.js").read_text()
    kinds = [Trials, InBlocks, Ranked, Choices, Predictions, Responses, Differences]
    assert set(kinds) == set(get_args(AnyTrials))
    for kind in kinds:
        assert re.search(rf'^  "?{kind.kind}"?: \(trials', script, re.M), kind.kind
        found = trials_entry(record(kind()), list)
        assert all(isinstance(column, list) for name, column in found.items() if name != "kind")


def test_a_text_longer_than_a_page_can_bear_is_cut_and_says_so() -> None:
    assert cut("x" * LONGEST) == "x" * LONGEST
    assert cut("x" * (LONGEST + 1_500)) == "x" * LONGEST + "… (1,500 more characters)"
    long = Window("00" * 8, 0, (1,), ("y" * 1_000_000,), (1.0,), 0)
    assert len(entry(0, long)["tokens"][0]) < LONGEST + 50


@given(
    st.recursive(
        st.one_of(st.none(), st.text()), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8
    )
)
def test_no_text_can_end_the_script_it_lies_in(content: object) -> None:
    payload = packed(content)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", payload)
    assert unpacked(payload) == content


# --- the page -----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Scripts, styles and the policy of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside: list[tuple[str, dict[str, str | None], str]] = [("", {}, "")]
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside.append(("", {}, ""))

    def handle_data(self, data: str) -> None:
        tag, attributes, text = self.inside[-1]
        self.inside[-1] = tag, attributes, text + data


@pytest.mark.parametrize("is_single", [False, True])
def test_the_policy_lets_run_our_scripts_and_nothing_else(
    made: tuple[Run, Path], tmp_path: Path, is_single: bool
) -> None:
    write_folder(made[0], tmp_path / "page", single=is_single)
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    found = Page(text)
    [policy] = [
        one["content"] for tag, one in found.tags if one.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "http" not in policy
    for tag, attributes, content in found.inside:
        if tag == "style" or (tag == "script" and "type" not in attributes):
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    assert not [attributes for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert BREAKS_OUT not in text


def test_a_run_named_like_a_tag_stays_a_title() -> None:
    text = view_page.page("</title><script>alert(1)</script>", {})
    assert "<script>alert" not in text
    assert "&lt;/title&gt;&lt;script&gt;alert(1)" in text


def test_every_asset_is_in_the_page_and_writes_no_markup() -> None:
    assets = Path(view_page.__file__).parent / "assets"
    text = view_page.page("run", {})
    for path in assets.iterdir():
        content = path.read_text(encoding="utf-8")
        assert path.name == "page.html" or content in text, path
        assert not re.search(
            r"innerHTML\s*[+=]|insertAdjacentHTML|document\.write|eval\(|https?://(?!www\.w3\.org)", content
        ), path


def luminance(red: float, green: float, blue: float) -> float:
    """Relative luminance of WCAG 2.2, of channels between 0 and 255."""
    linear = [
        one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4
        for one in (red / 255, green / 255, blue / 255)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(*one), luminance(*other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag_aa_in_both_modes() -> None:
    """Text on every ground it stands on, also on the tokens that fire most, at 4.5 to 1 or more."""
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    style = (Path(view_page.__file__).parent / "assets" / "style.css").read_text()
    modes = [
        dict(re.findall(r"--([\w-]+): ([^;]+);", block))
        for block in re.findall(r":root[^{]*\{([^}]*)\}", style)
    ]
    assert len(modes) == 3 and modes[1] == modes[2]  # chosen dark is the system's dark
    for mode in modes[:2]:
        colours = {
            name: tuple(bytes.fromhex(text[1:]))
            for name, text in mode.items()
            if re.fullmatch("#[0-9a-f]{6}", text)
        }
        for ground in ("bg", "panel", "hover", "selected"):
            for ink in ("text", "muted", "accent", "right", "wrong", "unread"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for square in ("right", "wrong", "unread"):
            assert contrast(colours["bg"], colours[square]) >= 4.5
        share = float(mode["faint"]) + float(mode["deep"])
        warm = [float(one) for one in mode["warm"].split()]
        fires = tuple(
            share * one + (1 - share) * ground for one, ground in zip(warm, colours["bg"], strict=True)
        )
        assert contrast(colours["text"], fires) >= 4.5


# --- writing it ---------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bytes_and_a_page_is_replaced(
    made: tuple[Run, Path], tmp_path: Path
) -> None:
    run, folder = made
    out = tmp_path / "page"
    write_folder(run, out)
    assert not (out / "data").exists()
    write_folder(run, out, single=False)
    for path in folder.rglob("*.*"):
        assert (out / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_what_is_no_page_of_ours_is_left_alone(made: tuple[Run, Path], tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>my thesis</html>")
    with pytest.raises(RunError, match="holds other things"):
        write_folder(made[0], tmp_path)
    assert (tmp_path / "index.html").read_text() == "<html>my thesis</html>"
    write_folder(made[0], tmp_path / "page")
    (tmp_path / "page" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="--out"):
        write_folder(made[0], tmp_path / "page")
    assert (tmp_path / "page" / "notes.txt").read_text() == "mine"


def test_a_run_with_nothing_sampled_says_how_to_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    for path in (run.path / "sample").rglob("*.*"):
        path.unlink()
    with pytest.raises(RunError, match="autointerp resume"):
        write_folder(run, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_the_command_writes_beside_the_run_and_says_where(made: tuple[Run, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["view", str(made[0].path)])
    assert done.exit_code == 0, done.output
    page = made[0].path.with_name("run-view") / "index.html"
    assert f"{N} features: 1 files" in done.output and str(page) in done.output
    assert len(features_of(page.parent)) == N
    assert CliRunner().invoke(app, ["view", str(tmp_path)]).exit_code == 2
