"""The explorer in a real browser, from the disk: Debian's Chromium, driven by playwright.

`make test-view` installs what it needs; elsewhere the tests are skipped.
"""

from __future__ import annotations

import importlib.util
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autointerp import floors
from autointerp.floors import Floor, Row
from autointerp.metrics import MeanOver
from autointerp.scored import Instance
from autointerp.types import Json
from autointerp.view.columns import decimals, numbers
from autointerp.view.folder import write_folder
from autointerp.view.packed import packed, script
from viewed import TWO, data_of, features_of, hostile, make_viewed_run

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    _CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="Chromium and playwright are not installed (apt-get install chromium; make test-view)",
)

N = 6
MANY = 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose texts try to be markup, script and style."""
    made = tmp_path_factory.mktemp("view")
    run = make_viewed_run(made / "run", N, hostile(1_000))
    mean = MeanOver(0.5, 0.4, 0.6, 9)
    floor = Floor("random model", mean, 9, None)
    floors.save(run, [Row(Instance("bench", "plain", "detection"), "balanced_accuracy", mean, N, [floor])])
    write_folder(run, made / "page", single=False)
    return made / "page"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of two dictionaries, of whose features four each are set against controls."""
    made = tmp_path_factory.mktemp("two")
    scorers = {"detection": {"use": "detection"}, "fuzz2": {"use": "fuzzing"}}
    run = make_viewed_run(made / "run", N, dictionaries=TWO, scorers=scorers, controls={"panel": 4})
    write_folder(run, made / "page", single=False)
    return made / "page"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose test fails where anything goes wrong in it that no test looks at."""
    context = browser.new_context(viewport={"width": 1300, "height": 800})
    opened, faults = context.new_page(), list[str]()
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    yield opened
    context.close()
    assert faults == []


def look(page: Any, folder: Path, address: str = "") -> None:
    page.goto("about:blank")
    page.goto(f"{(folder / 'index.html').resolve().as_uri()}#{address}")
    page.wait_for_selector("#pane > *", timeout=120_000)


def until(page: Any, condition: str) -> None:
    """`wait_for_function` would evaluate inside the page, which its policy forbids."""
    ends = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < ends, condition
        page.wait_for_timeout(20)


def listed(page: Any) -> list[str]:
    return page.locator("#rows .id").all_text_contents()


def test_it_opens_from_the_disk_with_the_run_s_card(page: Any, folder: Path) -> None:
    look(page, folder)
    assert listed(page) == [str(128 * number) for number in range(N)]
    assert page.locator("#count").text_content() == f"{N} features"
    assert page.locator("#pane h2").text_content() == "run"
    # detection and fuzzing of two explainers, and the intruder: a histogram each that has scores
    names = page.locator("#pane h3").all_text_contents()
    assert any(name.startswith("Score histograms") for name in names)
    assert page.locator("svg.plot").count() >= 4
    # The control is a line in its histogram, a tick on its bar and a column of the table.
    assert page.locator("svg .mark.floor title").all_text_contents() == ["random model: 0.5"]
    assert "random model" in page.locator("table.means").first.inner_text()


def test_one_file_shows_the_same(page: Any, folder: Path, tmp_path: Path) -> None:
    from autointerp.run import Run

    write_folder(Run.open(folder.parent / "run"), tmp_path / "one")
    seen = []
    for place in (folder, tmp_path / "one"):
        look(page, place, "f=bench/128")
        page.wait_for_selector(".score-card")
        seen.append(page.locator("#pane").inner_text())
    assert seen[0] == seen[1]


def test_a_click_opens_a_feature_with_its_windows_and_trials(page: Any, folder: Path) -> None:
    feature = features_of(folder)[2]
    look(page, folder)
    page.locator("#rows .row").nth(2).click()
    page.wait_for_selector(".score-card")
    assert page.url.endswith("#f=bench%2F256")
    assert page.locator("#pane .crumbs").inner_text().startswith("bench/256")
    texts = page.locator(".explanation").all_text_contents()
    assert len(texts) == len(feature["explanations"]) == 2
    trials = next(one for one in feature["scores"] if one["scorer"] == "detection")["trials"]
    pairs = list(zip(trials["truth"], trials["answer"], strict=True))
    n_wrong = sum(answer is not None and answer != truth for truth, answer in pairs)
    assert page.locator(".square.wrong").count() == n_wrong
    assert page.locator(".strips .square").count() == len(pairs)
    if n_wrong:
        assert page.locator(".trial").count() == page.locator(".trial.wrong").count() == n_wrong
    page.get_by_role("button", name=f"all {len(pairs)}").click()
    assert page.locator(".trial").count() == len(pairs)


def test_hovering_a_token_says_its_activation(page: Any, folder: Path) -> None:
    look(page, folder, "f=bench/0")
    token = page.locator(".window .fires[style]").first
    token.scroll_into_view_if_needed()
    token.hover()
    said = page.locator("#tip").text_content()
    assert said.endswith("% of the maximum")
    values = [value for one in features_of(folder)[0]["windows"]["shown"] for value in one["values"]]
    assert float(said.split(" ")[0]) in [pytest.approx(value, rel=1e-3) for value in values]


def test_search_filter_and_sort_stand_in_the_address(page: Any, folder: Path) -> None:
    [index] = data_of(folder)["index"]
    key = next(
        f"{one['explainer']}·{one['scorer']}" for one in index["scored"] if one["scorer"] == "detection"
    )
    look(page, folder, f"sort=-{key}")
    values = [float(text) for text in page.locator("#rows .score:nth-of-type(3) .number").all_text_contents()]
    assert values == sorted(values, reverse=True)
    page.locator("#search").fill("bench/256")
    assert listed(page) == ["256"]
    assert "q=bench%2F256" in page.url
    page.locator("#search").fill("")
    middle = sorted(values)[N // 2]
    look(page, folder, f"min.{key}={middle}")
    assert page.locator("#count").text_content() == f"{sum(one >= middle for one in values)} of {N}"
    page.locator("#filters-button").click()
    page.get_by_role("button", name="Clear all").click()
    assert page.locator("#count").text_content() == f"{N} features"
    page.go_back()


def test_going_back_to_a_feature_that_the_search_hides_leaves_the_list(page: Any, folder: Path) -> None:
    look(page, folder, "f=bench/0")
    page.locator("#search").fill("12")
    found = listed(page)
    assert found and "0" not in found
    page.locator("#rows .row").first.click()
    until(page, f"location.hash.includes('f=bench%2F{found[0]}')")
    page.go_back()
    until(page, "document.querySelector('#pane .crumbs')?.innerText.startsWith('bench/0')")
    assert listed(page) == found
    assert page.locator("#rows .row").first.is_visible()


def test_what_goes_wrong_below_the_first_sight_of_a_feature_is_said(page: Any, folder: Path) -> None:
    look(page, folder)
    page.evaluate("void (featureRest = () => { throw new Error('a plot of nothing'); })")
    page.locator("#rows .row").first.click()
    until(page, "document.querySelector('#pane .empty')?.innerText === 'a plot of nothing'")
    assert page.locator("#pane .crumbs").is_visible()


def test_the_status_is_a_column_to_sort_and_filter_by(page: Any, statuses: Path) -> None:
    look(page, statuses)
    assert page.locator("#rows .status").all_text_contents() == [
        "full",
        "too few",
        "full",
        "dead",
        "full",
        "dead",
    ]
    assert page.locator("#rows .label").nth(3).text_content() == "no explanation"
    page.locator("#head button", has_text="status").click()
    assert listed(page) == ["384", "640", "0", "256", "512", "128"]  # dead, full, too few
    page.locator("#head button", has_text="status").click()
    assert listed(page) == ["128", "0", "256", "512", "384", "640"]
    assert "sort=-status" in page.url
    page.locator("#filters-button").click()
    page.get_by_label("dead").check()
    assert listed(page) == ["384", "640"]


@pytest.fixture
def statuses(folder: Path, tmp_path: Path) -> Path:
    """The page with other statuses in its table: features that never fire have no labels."""
    shutil.copytree(folder, tmp_path / "page")
    [index] = data_of(folder)["index"]
    codes = [0, 1, 0, 2, 0, 2]
    labels = [{"labels": ["" if code == 2 else "text" for code in codes]} for _ in index["explained"]]
    index |= {
        "status": {"names": ["full", "too_few", "dead"]} | numbers(codes, "u1"),
        "explained": [one | own for one, own in zip(index["explained"], labels, strict=True)],
    }
    (tmp_path / "page" / "data" / "index.js").write_bytes(script("index", [packed(index)]))
    return tmp_path / "page"


def test_labels_are_sorted_as_they_are_shown(page: Any, folder: Path, tmp_path: Path) -> None:
    """By those of the explainer that is chosen, also where those of another were sorted before."""
    shutil.copytree(folder, tmp_path / "page")
    [index] = data_of(folder)["index"]
    for one, letters in zip(index["explained"], ("abcdef", "fadbec"), strict=True):
        one["labels"] = list(letters)
    (tmp_path / "page" / "data" / "index.js").write_bytes(script("index", [packed(index)]))
    look(page, tmp_path / "page", "sort=label")
    for _ in range(2):
        page.evaluate("change({explainer: 'plain'})")
        assert page.locator("#rows .label").all_text_contents() == list("abcdef")
        page.evaluate("change({explainer: 'top_tokens'})")
        assert page.locator("#rows .label").all_text_contents() == list("abcdef")
        assert listed(page) == ["128", "384", "640", "256", "512", "0"]


def test_what_was_asked_for_last_is_shown_once(page: Any, folder: Path) -> None:
    """Also where another feature was asked for in between, and is read later; and behind the first sight of it."""
    look(page, folder, "f=bench/0")
    page.wait_for_selector(".score-card")
    n_scores = len(features_of(folder)[0]["scores"])
    for rows, number in (([1, 0], 0), ([2, 3, 2], 256), ([1, 2, 3, 0, 0], 0)):
        page.evaluate("rows => rows.forEach(openRow)", rows)
        until(page, f"document.querySelector('#pane .crumbs').textContent.startsWith('bench/{number}')")
        page.wait_for_timeout(300)
        assert page.locator("#pane .crumbs").inner_text().startswith(f"bench/{number}")
        assert page.locator("#pane .score-card").count() == n_scores
        assert page.locator("#pane .tabs").count() == 1


def test_features_beside_the_open_one_are_read_ahead(page: Any, folder: Path, tmp_path: Path) -> None:
    """Of the list as it is sorted; each file once. Here each is of one feature."""
    shutil.copytree(folder, tmp_path / "page")
    [index] = data_of(folder)["index"]
    data = tmp_path / "page" / "data"
    (data / "index.js").write_bytes(script("index", [packed(index | {"features_a_shard": 1})]))
    for at, feature in enumerate(features_of(folder)):
        (data / f"s{at:05}.js").write_bytes(script(f"s{at:05}", [packed(feature)]))
    read: list[str] = []
    page.on("request", lambda request: read.append(request.url.rpartition("/")[2]))
    look(page, tmp_path / "page", "sort=-&f=bench/256")
    page.wait_for_selector(".score-card")
    until(page, "payloadsOf.size === 3")
    assert sorted(one for one in read if one.startswith("s")) == ["s00001.js", "s00002.js", "s00003.js"]
    page.keyboard.press("j")
    until(page, "document.querySelector('#pane .crumbs').textContent.startsWith('bench/128')")
    until(page, "payloadsOf.size === 4")
    assert sorted(one for one in read if one.startswith("s"))[:2] == ["s00000.js", "s00001.js"]
    assert len(read) == len(set(read))


def test_a_search_that_finds_nothing_says_so(page: Any, folder: Path) -> None:
    look(page, folder, "q=no-such-words-anywhere")
    assert listed(page) == []
    assert "No feature matches" in page.locator("#rows").inner_text()


def test_keys_walk_through_the_features(page: Any, folder: Path) -> None:
    look(page, folder)

    def is_open(number: int) -> None:
        until(page, f"document.querySelector('#pane .crumbs').textContent.startsWith('bench/{number}')")

    for key, number in (("j", 0), ("j", 128), ("ArrowDown", 256), ("k", 128), ("ArrowUp", 0), ("k", 0)):
        page.keyboard.press(key)
        is_open(number)
    page.keyboard.press("r")
    until(page, "document.querySelector('#pane h2').textContent === 'run'")
    page.keyboard.press("/")
    page.keyboard.type("bench/384")
    page.keyboard.press("Enter")
    is_open(384)
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    page.keyboard.press("f")
    assert page.locator("#filters").is_visible()
    page.go_back()
    until(page, "document.querySelector('#pane h2').textContent === 'run'")


def test_the_theme_is_the_system_s_until_it_is_chosen(browser: Any, folder: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    look(page, folder)
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.keyboard.press("t")
    light = page.evaluate(colour)
    assert (dark, light) == ("rgb(21, 23, 27)", "rgb(255, 255, 255)")
    page.reload()
    page.wait_for_selector("#pane > *")
    assert page.evaluate(colour) == light
    context.close()


# --- two dictionaries ---------------------------------------------------------------------------------------


def shuffled(folder: Path, dictionary: str) -> float:
    """The mean of shuffled explanations under `plain` and `detection`."""
    summaries = data_of(folder)["index"][0]["card"]["summaries"]
    [found] = [
        one["control"]["value"]
        for summary in summaries
        for one in summary["controls"]
        if (summary["dictionary"], one["kind"]) == (dictionary, "shuffled")
        and (one["explainer"], one["scorer"]) == ("plain", "detection")
    ]
    return found


def test_a_feature_stands_beside_the_controls_of_its_own_dictionary(page: Any, two: Path) -> None:
    means = {name: f"shuffled {shuffled(two, name):.2f}" for name in TWO}
    assert len(set(means.values())) == 2
    for name, mean in means.items():
        look(page, two, f"f={name}/0")
        page.wait_for_selector(".score-card")
        facts = page.locator(".score-card", has_text="plain · detection").locator("p.note").first
        assert f"{mean} on average" in facts.text_content()
        bar = page.locator(".card", has_text="plain").locator(".score-line", has_text="detection")
        places = bar.first.locator("i.floor").evaluate_all(
            "all => all.map(one => parseFloat(one.style.left))"
        )
        assert any(place == pytest.approx(100 * shuffled(two, name)) for place in places)


def test_the_card_s_plots_are_of_one_dictionary_at_a_time(page: Any, two: Path) -> None:
    """Each histogram has the scores of its dictionary's features alone, and a line at its controls."""
    [index] = data_of(two)["index"]
    assert index["n"] == 2 * N
    seen = dict[str, list[str]]()
    for address, name in (("", "one"), ("dictionary=two", "two")):
        look(page, two, address)
        assert page.locator(".choices [aria-pressed=true]").text_content() == name
        histogram = page.get_by_role("img", name="features by plain · detection: balanced accuracy")
        bars = histogram.locator(".bar title").all_text_contents()
        assert sum(int(said.split(": ")[1].split(" ")[0]) for said in bars) == N
        marks = histogram.locator(".mark.floor title").all_text_contents()
        assert any(
            float(mark.removeprefix("shuffled: ")) == pytest.approx(shuffled(two, name), abs=1e-3)
            for mark in marks
            if mark.startswith("shuffled: ")
        )
        cloud = page.get_by_role("img", name="plain · detection by density")
        seen[name] = cloud.locator("title").all_text_contents()
        assert sorted(seen[name]) == sorted(f"{name}/{128 * number}" for number in range(N))
    page.get_by_role("button", name="one", exact=True).click()
    assert cloud.locator("title").all_text_contents() == seen["one"]


def test_detection_stands_against_fuzzing_whatever_it_is_called(page: Any, two: Path) -> None:
    look(page, two)
    names = page.locator("#pane h3").all_text_contents()
    assert "Detection against fuzzing" in names
    for explainer in ("plain", "top_tokens"):
        drawn = page.get_by_role("img", name=f"{explainer} · fuzz2 by {explainer} · detection")
        assert drawn.locator(".point").count() == N


def test_a_feature_shows_the_scores_of_its_own_controls(page: Any, two: Path) -> None:
    feature = next(one for one in features_of(two) if len(one["scores"][0]["controls"]) == 2)
    look(page, two, f"f={feature['id']}")
    page.wait_for_selector(".score-card")
    page.locator(".score-card").first.locator("summary").click()
    table = page.locator(".score-card").first.locator("table", has_text="controls on this feature")
    rows = table.locator("tr").all_inner_texts()
    for control, row in zip(feature["scores"][0]["controls"], rows, strict=True):
        assert row.startswith(control["name"]) and f"n {control['n']}" in row
        assert f"{control['value']['value']:.2f}" in row
        assert control["lender"] is None or control["lender"] in row


def test_no_explanation_is_the_best_where_two_are_equal(page: Any, folder: Path, tmp_path: Path) -> None:
    """`best` where its interval is above the others', `highest` where intervals meet, nothing where it is a tie."""
    shutil.copytree(folder, tmp_path / "page")
    features = features_of(folder)
    headlines = (
        [(0.7, 0.6, 0.8), (0.7, 0.6, 0.8)],
        [(0.9, 0.85, 1.0), (0.7, 0.6, 0.8)],
        [(0.7, 0.6, 0.8), (0.75, 0.65, 0.85)],
    )
    for feature, given in zip(features, headlines, strict=False):
        scores = [one for one in feature["scores"] if one["scorer"] == "detection"]
        for score, (value, low, high) in zip(scores, given, strict=True):
            score["metrics"]["values"][score["metrics"]["headline"]] = {
                "value": value,
                "low": low,
                "high": high,
            }
    payloads = [packed(feature) for feature in features]
    (tmp_path / "page" / "data" / "s00000.js").write_bytes(script("s00000", payloads))
    said = []
    for feature in features[:3]:
        look(page, tmp_path / "page", f"f={feature['id']}")
        page.wait_for_selector(".score-card")
        lines = page.locator(".card .score-line", has_text="detection")
        said.append([line.locator(".chip").all_text_contents() for line in lines.all()])
    assert said == [[[], []], [["best"], []], [[], ["highest"]]]


def test_the_card_says_which_model_dictionary_and_corpus_these_are(
    page: Any, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "page")
    [index] = data_of(folder)["index"]
    card = index["card"]
    whole = {"model": "ab" * 16, "dictionary": "cd" * 16, "corpus": "ef" * 16}
    for name, of in (
        ("model", card["model"]),
        ("dictionary", card["dictionaries"][0]),
        ("corpus", card["corpus"]),
    ):
        of["identity"] = whole[name]
    (tmp_path / "page" / "data" / "index.js").write_bytes(script("index", [packed(index)]))
    look(page, tmp_path / "page")
    for name, identity in whole.items():
        row = page.locator(f"dl.facts dt:text-is('{name}') + dd").first
        assert row.inner_text().endswith(identity[:12])
        assert row.locator("[title]").get_attribute("title") == f"identity {identity}"


def test_plots_of_a_sequential_scorer_are_of_its_panel(page: Any, folder: Path, tmp_path: Path) -> None:
    """Scores of others are biased, for the test may have stopped: they stay in the table alone."""
    shutil.copytree(folder, tmp_path / "page")
    [index] = data_of(folder)["index"]
    [column] = [one for one in index["scored"] if (one["explainer"], one["scorer"]) == ("plain", "detection")]
    column["early"] = numbers([0, 1, 0, 1, 1, 0], "u1")
    (tmp_path / "page" / "data" / "index.js").write_bytes(script("index", [packed(index)]))
    look(page, tmp_path / "page")
    cloud = page.get_by_role("img", name="plain · detection by density")
    assert cloud.locator("title").all_text_contents() == ["bench/0", "bench/256", "bench/640"]
    histogram = page.get_by_role("img", name="features by plain · detection: balanced accuracy")
    bars = histogram.locator(".bar title").all_text_contents()
    assert sum(int(said.split(": ")[1].split(" ")[0]) for said in bars) == 3
    other = page.get_by_role("img", name="plain · fuzzing by density")
    assert other.locator(".point").count() == N
    assert "the panel alone" in page.locator("#pane h3", has_text="Score histograms").inner_text()
    values = page.locator("#rows .score:nth-of-type(3) .number").all_text_contents()
    assert len(values) == N and "–" not in values


# --- text that tries to be something else -------------------------------------------------------------------


def test_hostile_text_stays_text_everywhere(page: Any, folder: Path) -> None:
    """Every feature is opened and every list of trials unfolded: nothing runs, no element comes of text, and what
    would reorder or hide its neighbours is said by its code."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    look(page, folder)
    allowed = set(page.evaluate("[...document.querySelectorAll('*')].map(one => one.tagName.toLowerCase())"))
    seen = ""
    for number in range(N):
        look(page, folder, f"f=bench/{128 * number}")
        page.wait_for_selector(".score-card")
        for tab in page.locator("[role=tab]").all():
            tab.click()
            everything = page.locator(".choices button", has_text="all ")
            if everything.count():
                everything.first.click()
        seen += page.locator("#pane").text_content()
        found = page.evaluate(
            "[...document.querySelectorAll('#pane *')].map(one => one.tagName.toLowerCase())"
        )
        assert not set(found) & {"script", "img", "iframe", "style", "link", "object", "textarea"}
        attributes = "[...document.querySelectorAll('*')].flatMap(one => one.getAttributeNames())"
        assert not [name for name in page.evaluate(attributes) if name.startswith("on") or name == "srcdoc"]
    assert page.evaluate("window.hacked") is None
    assert "script" in allowed
    assert page.locator("#search").is_visible()
    assert all(url.startswith("file:") or url == "about:blank" for url in asked)
    for text in (
        "<img src=x onerror=window.hacked=1>",
        "</script><script>window.hacked=1</script>",
        "${7*7}",
        "漢字かな",
    ):
        assert text in seen
    assert "⟨202E⟩esrever" in seen
    for hidden in "\u202e\u2066\u200b\ufeff\x00\x07\u2028":
        assert hidden not in seen


@pytest.fixture
def faulty(browser: Any) -> Iterator[Any]:
    """A page in which something is missing, which the browser says."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def test_what_the_page_does_not_carry_cannot_run(faulty: Any, folder: Path) -> None:
    """The policy stops what would come of a mistake: an inline handler, a script of text, a picture."""
    look(faulty, folder)
    faulty.evaluate(
        """() => {
            document.addEventListener("securitypolicyviolation", () => window.stopped = (window.stopped ?? 0) + 1);
            const box = document.createElement("div");
            box.innerHTML = '<img src="data:image/png;base64,AAAA" onerror="window.hacked=1">';
            document.body.append(box);
            const script = document.createElement("script");
            script.textContent = "window.hacked=1";
            document.body.append(script);
        }"""
    )
    until(faulty, "window.stopped >= 2")
    assert faulty.evaluate("window.hacked") is None


def test_a_shard_that_is_missing_is_said(faulty: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "page")
    (tmp_path / "page" / "data" / "s00000.js").unlink()
    look(faulty, tmp_path / "page", "f=bench/0")
    faulty.wait_for_selector("#pane .empty")
    assert "data/s00000.js is missing" in faulty.locator("#pane").inner_text()


# --- searching ----------------------------------------------------------------------------------------------

_LETTERS = "aaabbceéÉ\u0301ßİσΣς漢🙂  \n"
"""Few, so that texts hold the same beginnings many times over."""


def typed(draw: random.Random, texts: list[str]) -> list[list[str]]:
    """Words as they stand in the search box, letter by letter: what is in some text or nearly is, typed on, taken
    back, with another word in front."""
    queries = list[list[str]]()
    for _ in range(120):
        text = draw.choice(texts)
        at = draw.randrange(len(text))
        word = text[at : at + draw.randint(1, 7)] + draw.choice(["", "", draw.choice(_LETTERS).lower()])
        others = draw.choice([[], [], [draw.choice(texts)[:1]], ["b", "a"]])
        ends = list(range(1, len(word) + 1))
        queries += [[*others, word[:end]] for end in ends + ends[:-1][::-1][: draw.randint(0, 3)]]
    return queries


@pytest.mark.parametrize("n_letters", [12, 60])
def test_a_search_finds_what_looking_through_each_text_does(page: Any, folder: Path, n_letters: int) -> None:
    """Whatever was searched before. In short texts a letter typed on leaves few rows, in long ones most."""
    draw = random.Random(n_letters)
    texts = ["".join(draw.choices(_LETTERS, k=draw.randint(0, n_letters))) + "." for _ in range(500)]
    lower = [text.lower() for text in texts]
    queries = typed(draw, lower)
    look(page, folder)
    found = page.evaluate(
        """({texts, queries}) => {
            const hay = new Haystack(texts.length, (row) => texts[row]);
            return queries.map((words) => [...hay.search(words)].flatMap((is, row) => is ? [row] : []));
        }""",
        {"texts": texts, "queries": queries},
    )
    for words, rows in zip(queries, found, strict=True):
        assert rows == [at for at, text in enumerate(lower) if all(word in text for word in words)], words
    n_found = [len(rows) for rows in found]
    assert min(n_found) == 0 and max(n_found) > len(texts) / 2


def test_case_is_no_matter_and_accents_are(page: Any, folder: Path) -> None:
    look(page, folder)
    texts = ["École normale", "ecole", "STRASSE", "Straße 7", "ΟΔΟΣ", 'the "end" of it', "of the end", ""]
    for query, rows in {
        "éCOLE": [0],
        "ecole": [1],
        "strasse": [2],
        "STRAß": [3],
        "οδο": [4],
        "the end": [5, 6],
        '"the end"': [6],
        '"the end': [6],
        "end of": [5, 6],
        '"': [0, 1, 2, 3, 4, 5, 6, 7],
        "7 tra": [3],
    }.items():
        found = page.evaluate(
            "({texts, query}) => [...new Haystack(texts.length, (row) => texts[row]).search(wordsOf(query))]",
            {"texts": texts, "query": query},
        )
        assert [row for row, is_found in enumerate(found) if is_found] == rows, query


def test_rows_that_stay_in_sight_are_those_that_are_found(page: Any, folder: Path) -> None:
    """Rows are kept while a search is typed and taken back: their order, numbers and labels are as if drawn anew."""
    look(page, folder)
    for query in ("1", "12", "128", "12", "", "5", "56", "nothing", "0", ""):
        page.locator("#search").fill(query)
        wanted = [
            str(128 * at) for at in range(N) if query in page.evaluate(f"index.hay.text.split('\\0')[{at}]")
        ]
        assert listed(page) == wanted
        places = page.locator("#rows .row").evaluate_all("all => all.map(one => one.ariaRowIndex)")
        assert places == [str(place + 1) for place in range(len(wanted))]
        assert ("No feature matches" in page.locator("#rows").inner_text()) == (not wanted)
    page.locator("#search").fill("bench/2")
    page.locator("#head button").first.click()
    page.locator("#search").fill("bench/")
    assert listed(page) == [str(128 * at) for at in reversed(range(N))]


# --- sorting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("descending", [False, True])
def test_numbers_of_any_size_and_sign_are_sorted(page: Any, folder: Path, descending: bool) -> None:
    """Equal ones stay in their order, 0 is -0, and what is missing comes last either way."""
    draw = random.Random(0)
    ends = [0.0, -0.0, 1e308, -1e308, 5e-324, -5e-324, 4294967295.0, 16777217.0, 16777216.0]
    known = [draw.choice([draw.gauss(0, 1), draw.gauss(0, 1e9), round(draw.random(), 1)]) for _ in range(500)]
    values = [*known, *ends, *[None] * 20, *known[:100]]
    draw.shuffle(values)
    look(page, folder)
    found = page.evaluate(
        "({values, descending}) => [...byNumbers(values.map((one) => one ?? NaN), descending)]",
        {"values": values, "descending": descending},
    )
    sign = -1 if descending else 1
    rows = range(len(values))
    assert found == sorted(rows, key=lambda row: (values[row] is None, sign * (values[row] or 0.0)))


@pytest.mark.parametrize("descending", [False, True])
def test_texts_are_sorted_by_letter_and_empty_ones_last(page: Any, folder: Path, descending: bool) -> None:
    look(page, folder)
    texts = ["b", "", "a", "ä", "b", "ab", "", "漢"]
    found = page.evaluate(
        "({texts, descending}) => [...byTexts(texts, descending)]", {"texts": texts, "descending": descending}
    )
    assert found == ([7, 3, 0, 4, 5, 2, 1, 6] if descending else [2, 5, 0, 4, 3, 7, 1, 6])


# --- a hundred thousand -------------------------------------------------------------------------------------


def many_texts() -> list[str]:
    draw = random.Random(0)
    words = "river legal clause bracket python verb dosage city hexadecimal apology comma gradient".split()
    return [" ".join(draw.choices(words, k=20)) + f" number {at}" for at in range(MANY)]


def many(index: Json, texts: list[str]) -> Json:
    """The index with 100,000 rows of other numbers and labels; shards are those of the few."""
    draw = random.Random(0)
    values = [round(draw.random(), 2) if at % 10 else math.nan for at in range(MANY)]
    scored = {name: decimals(values) for name in ("value", "low", "high")}
    return index | {
        "n": MANY,
        "dictionary": numbers([0] * MANY, "u2"),
        "number": numbers(range(MANY), "u4"),
        "negative": numbers([0] * MANY, "u1"),
        "status": index["status"] | numbers([0] * MANY, "u1"),
        **{name: numbers([draw.random() for _ in range(MANY)], "f4") for name in ("density", "maximum")},
        "windows": numbers(range(MANY), "u4"),
        "explained": [one | {"labels": [text[:30] for text in texts]} for one in index["explained"]],
        "scored": [one | scored for one in index["scored"]],
    }


@pytest.fixture(scope="module")
def large(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("large") / "page"
    shutil.copytree(folder, made)
    index, texts = data_of(folder)["index"][0], many_texts()
    (made / "data" / "index.js").write_bytes(script("index", [packed(many(index, texts))]))
    (made / "data" / "texts.js").write_bytes(script("texts", [packed([texts for _ in index["explained"]])]))
    return made


def test_a_hundred_thousand_features_are_searched_sorted_and_scrolled(page: Any, large: Path) -> None:
    """Bounds are far above what a quiet machine takes: they tell a scan from a scan for every row."""
    began = time.monotonic()
    look(page, large)
    assert time.monotonic() - began < 60
    assert page.locator("#count").text_content() == "100,000 features"
    assert page.locator("#rows .row").count() < 100  # only those in sight
    until(page, "performance.getEntriesByName('searchable').length === 1")
    milliseconds = page.evaluate(
        """() => {
            index.haystack();
            const began = performance.now();
            const found = index.rows({...state, query: "number 77777"});
            return [performance.now() - began, found.length, index.shortId(found[0])];
        }"""
    )
    assert milliseconds[1:] == [1, "77777"]
    assert milliseconds[0] < 2_000
    page.locator("#search").fill('"number 4242"')
    assert page.locator("#count").text_content() == "11 of 100,000"  # 4242 and 42420 to 42429
    page.locator("#search").fill("")
    page.evaluate("document.getElementById('scroll').scrollTop = 1e9")
    until(page, "document.querySelector('#rows .row:last-child .id').textContent === '99999'")
    page.locator("#head button").nth(2).click()  # the first score, the best first
    page.evaluate("document.getElementById('scroll').scrollTop = 0")
    until(page, "document.querySelector('#rows .row .score .number').textContent === '1.00'")
    # Those without a score come last, whichever way it is sorted.
    for _ in range(2):
        page.evaluate("document.getElementById('scroll').scrollTop = 1e9")
        until(page, "document.querySelector('#rows .row:last-child .score .number').textContent === '–'")
        page.locator("#head button").nth(2).click()
