"""Intruder, embeddings and simulation, by numbers worked out by hand.

Golden prompts are written anew by `AUTOINTERP_GOLDEN=write pytest tests/test_more_scorers.py`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from asked import asking, golden, heldout_of, make_window, views_in

from autointerp import plugins
from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, RecipeError
from autointerp.evidence import needs_explanation, needs_of
from autointerp.llm.clauses import odd_one_out
from autointerp.llm.exchange import Reply
from autointerp.llm.lexical import LexicalLLM
from autointerp.llm.protocol import Capabilities, LLMIdentity
from autointerp.llm.scripted import ScriptedLLM
from autointerp.metrics import measure
from autointerp.metrics.chosen import n_clusters
from autointerp.metrics.influence import influences
from autointerp.metrics.ranking import proportion
from autointerp.prompting import Prompt, View
from autointerp.results import Facts, Interval
from autointerp.scorers.embedding import Embedding
from autointerp.scorers.example_embedding import ExampleEmbedding, likeness
from autointerp.scorers.intruder import Intruder, read_number
from autointerp.scorers.protocol import role_of
from autointerp.scorers.similar import Vectors
from autointerp.scorers.simulation import Simulation, chosen, expected_rating
from autointerp.splits import Heldout
from autointerp.stages.score import measured
from autointerp.trials import Choices, Predictions
from autointerp.types import Window

FACTS = Facts(density=0.01, prevalence=0.01, mass=[])
GOLDEN = Path(__file__).parent / "golden"


def in_bands(n_bands: int, of_each: int, n_silent: int, seed: int = 0) -> Heldout:
    heldout = heldout_of(n_bands * of_each, n_silent, random.Random(seed))
    active = tuple(window._replace(band=n % n_bands) for n, window in enumerate(heldout.active))
    return Heldout(active, heldout.silent)


# --- intruder ----------------------------------------------------------------------------------------------


def place_of_intruder(prompt: Prompt) -> int:
    (place,) = (n for n, view in enumerate(views_in(prompt)) if view.window.band is None)
    return place


def test_a_judge_who_sees_the_intruder_is_always_right() -> None:
    """Two line-ups of each of four deciles: four of the decile and one silent window, each time another one."""
    heldout = in_bands(4, 6, 20)
    prompts: list[Prompt] = []

    def answer(prompt: Prompt, index: int) -> str:
        prompts.append(prompt)
        return str(place_of_intruder(prompt) + 1)

    trials = asyncio.run(Intruder().judge("", heldout, asking(answer)))
    assert trials.right == trials.chosen == [0] * 8 and trials.n_options == [5] * 8
    assert trials.band == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({views_in(prompt)[place_of_intruder(prompt)].window for prompt in prompts}) > 4
    for prompt, band in zip(prompts, trials.band, strict=True):
        assert Counter(view.window.band for view in views_in(prompt)) == {band: 4, None: 1}
        assert all(view.marks for view in views_in(prompt))
    value = measure(trials, None).value
    assert value is not None and value.value == 1.0


def test_line_ups_of_a_decile_share_no_window_where_there_are_enough() -> None:
    """Five are used by each: four are shown, and one lends its marks. Of nine the second one takes any."""
    for n_windows, n_shown in ((10, 8), (9, None)):
        seen: list[Window] = []

        def answer(prompt: Prompt, index: int, seen: list[Window] = seen) -> str:
            seen.extend(view.window for view in views_in(prompt) if view.window.band is not None)
            return "1"

        asyncio.run(Intruder().judge("", in_bands(1, n_windows, 20), asking(answer)))
        assert len(seen) == 8
        assert n_shown is None or len(set(seen)) == n_shown


def test_line_ups_that_share_a_document_count_once() -> None:
    """By hand: of four line-ups three are right; two hang together by b, two of another decile by nothing. So three
    trials of which three quarters are right: two whole hits of three at a chance of one in five."""
    documents = [["a", "b"], ["b", "c"], ["a", "d"], ["e", "f"]]
    trials = Choices([0] * 4, [0, 0, 0, 1], [5] * 4, [0, 0, 1, 1], documents)
    assert n_clusters(trials, range(4)) == 3
    metrics = measure(trials, None)
    assert metrics.value == proportion(0.75, 3)
    assert metrics.p_value == pytest.approx(3 * 0.04 * 0.8 + 0.008)
    chain = Choices([0] * 3, [0] * 3, [5] * 3, [0] * 3, [["a", "b"], ["c", "d"], ["b", "c"]])
    assert n_clusters(chain, range(3)) == 1


def test_a_place_or_a_count_of_marks_is_worth_a_fifth() -> None:
    """Over 60 features of 20 line-ups a fixed place is right 240 times in 1,200, +- 14; 4 such are allowed."""
    judges = {
        "first": lambda views: 0,
        "last": lambda views: 4,
        "most marks": lambda views: max(range(5), key=lambda n: len(views[n].marks)),
        "first mark": lambda views: min(range(5), key=lambda n: views[n].marks[0]),
        "last mark": lambda views: max(range(5), key=lambda n: views[n].marks[-1]),
    }
    for name, picks in judges.items():
        n_right = 0
        for feature in range(60):
            to = asking(lambda prompt, index, picks=picks: str(picks(views_in(prompt)) + 1), f"a/{feature}")
            trials = asyncio.run(Intruder().judge("", in_bands(10, 5, 30, feature), to))
            n_right += sum(a == b for a, b in zip(trials.right, trials.chosen, strict=True))
        assert abs(n_right - 240) <= 56, name


def test_an_unreadable_pick_is_asked_for_once_more_in_another_order() -> None:
    orders: list[list[str]] = []

    def answer(prompt: Prompt, index: int) -> str:
        orders.append([view.window.text for view in views_in(prompt)])
        return "the third one" if index == 0 else str(place_of_intruder(prompt) + 1)

    trials = asyncio.run(Intruder(per_band=1).judge("", in_bands(1, 5, 3), asking(answer)))
    assert trials.chosen == [0] and len(orders) == 2
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    lost = asyncio.run(
        Intruder(per_band=1).judge("", in_bands(1, 5, 3), asking(lambda prompt, index: "none"))
    )
    assert lost.chosen == [None]


@pytest.mark.parametrize(
    ("text", "place"),
    [("3", 2), (" 5.\n", 4), ("6", None), ("0", None), ("3 and 4", None), ("", None), ("**3**", None)],
)
def test_a_number_is_read_strictly(text: str, place: int | None) -> None:
    assert read_number(text, 5) == place


def test_no_line_up_without_four_of_a_kind_or_a_silent_window() -> None:
    to = asking(lambda prompt, index: "1")
    assert len(asyncio.run(Intruder().judge("", in_bands(2, 3, 5), to))) == 0
    # Of four windows one that is shown would lend its marks, and two marked alike would tell.
    assert len(asyncio.run(Intruder().judge("", in_bands(2, 4, 5), to))) == 0
    assert len(asyncio.run(Intruder().judge("", in_bands(2, 5, 0), to))) == 0
    with pytest.raises(RecipeError, match="per_band is 0"):
        Intruder(per_band=0)


def test_the_lexical_backend_picks_whose_marked_tokens_differ() -> None:
    """By hand: three marks on " cat", one on " the"; where marks say nothing the words do."""
    cats = [View(make_window([" the", " cat", f" w{n}"]), (1,)) for n in range(3)]
    assert odd_one_out([cats[0], View(make_window([" the", " cat"]), (0,)), *cats[1:]]) == 1
    plain = [View(make_window([f" x{n}", " a", " b"]), (0,)) for n in range(3)]
    assert odd_one_out([*plain, View(make_window([" x9", " q", " r"]), (0,))]) == 3
    trials = asyncio.run(Intruder().judge("", in_bands(1, 5, 3), Asking(LexicalLLM(), "a/1")))
    assert all(pick is not None for pick in trials.chosen) and len(trials) == 2


# --- embeddings ---------------------------------------------------------------------------------------------


class Embedder(ScriptedLLM):
    """Vectors by the text's first word."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        super().__init__(LLMIdentity("embedder"), lambda prompt, index: "")
        self.capabilities = Capabilities(embed=True)
        self.asked: list[str] = []
        self._vectors = vectors

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.asked += texts
        return [self._vectors[text.split()[0]] for text in texts]


def named(name: str, *, active: bool) -> Window:
    return make_window([name, " x"], {0: 3.0} if active else None)


THREE = Heldout((named("east", active=True), named("north", active=True)), (named("west", active=False),))
COMPASS = {"east": [2.0, 0.0], "north": [0.0, 0.5], "west": [-1.0, 0.0], "nowhere": [0.0, 0.0]}


def test_windows_are_ranked_by_their_cosine_with_the_explanation() -> None:
    """North east: cosines 1/sqrt 2 with east and north, -1/sqrt 2 with west, however long the vectors are."""
    llm = Embedder(COMPASS | {"fires": [3.0, 3.0]})
    trials = asyncio.run(Embedding().judge("fires there", THREE, Asking(llm, "a/1")))
    assert trials.value == pytest.approx([0.5**0.5, 0.5**0.5, -(0.5**0.5)], abs=1e-6)
    assert trials.truth == [True, True, False] and trials.window == [0, 1, 2]
    assert llm.asked == ["fires there", "east x", "north x", "west x"]
    value = measure(trials, None).value
    assert value is not None and value.value == 1.0


def test_the_instruction_stands_in_front_of_the_explanation() -> None:
    llm = Embedder(COMPASS | {"Instruct:": [1.0, 0.0]})
    scorer = Embedding(instruction="Find texts.")
    asyncio.run(scorer.judge("birds\nfly", THREE, Asking(llm, "a/1")))
    assert llm.asked[0] == "Instruct: Find texts.\nQuery: birds⏎fly"
    assert "Find texts." in scorer.protocol(llm.capabilities)


def test_likeness_to_a_half_of_the_active_windows_by_hand() -> None:
    """Of e1 and e2, with e1, e1 and e2: (1 + 1 + 0) / 3, and (0 + 0 + 1) / 3."""
    x_NK: Vectors = np.array([[1.0, 0.0], [0.0, 1.0]])
    y_AK: Vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert likeness(x_NK, y_AK) == pytest.approx([2 / 3, 1 / 3])


def test_a_window_is_tested_or_compared_with_never_both() -> None:
    trials = asyncio.run(ExampleEmbedding().judge("", THREE, Asking(Embedder(COMPASS), "a/1")))
    # Of east and north one is what the other, and west, are compared with.
    compared = next(n for n in (0, 1) if n not in trials.window)
    assert trials.window == [1 - compared, 2] and trials.truth == [True, False]
    assert trials.value == pytest.approx([0.0, -1.0 if compared == 0 else 0.0])
    many = Heldout(tuple(named("east", active=True) for _ in range(7)), THREE.silent)
    assert len(asyncio.run(ExampleEmbedding().judge("", many, Asking(Embedder(COMPASS), "a/1")))) == 5


def test_a_single_active_window_can_be_compared_with_none() -> None:
    """That is an end with its reason, not a score of 0."""
    alone = Heldout(THREE.active[:1], THREE.silent)
    trials = asyncio.run(ExampleEmbedding().judge("", alone, Asking(Embedder(COMPASS), "a/1")))
    status, metrics, reason = measured(trials, FACTS)
    assert (len(trials), status, metrics.value) == (0, "untestable", None)
    assert reason is not None and "no windows" in reason


def test_where_there_is_nothing_to_find_few_features_are_claimed() -> None:
    """Windows of both kinds drawn alike around a common mean, as texts of one corpus are: p below 0.05 in at most
    a twentieth of 200 features, within two standard errors; and the interval holds half."""
    rng = np.random.default_rng(0)
    n_claimed = n_held = 0
    for feature in range(200):
        vectors = {f"w{n}": (rng.normal(size=5) + 1).tolist() for n in range(40)}
        windows = [named(f"w{n}", active=n < 20) for n in range(40)]
        heldout = Heldout(tuple(windows[:20]), tuple(windows[20:]))
        asked = ExampleEmbedding().judge("", heldout, Asking(Embedder(vectors), f"a/{feature}"))
        metrics = measure(asyncio.run(asked), None)
        assert metrics.p_value is not None and metrics.value is not None
        n_claimed += metrics.p_value < 0.05
        n_held += metrics.value.low <= 0.5 <= metrics.value.high
    print(f"claimed {n_claimed / 200:.3f}, held {n_held / 200:.3f}")
    assert n_claimed <= 0.08 * 200 and n_held >= 0.92 * 200


# --- simulation ---------------------------------------------------------------------------------------------


class Filling(ScriptedLLM):
    """Rates each token by a function of its text."""

    def __init__(self, rate: dict[str, dict[str, float]]) -> None:
        super().__init__(LLMIdentity("filling"), lambda prompt, index: "")
        self.capabilities = Capabilities(logprobs=True)
        self.asked: list[tuple[list[str], str]] = []
        self._rate = rate

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        self.asked.append((list(pieces), filler))
        rates = (self._rate.get(piece.strip(), {"0": 1.0}) for piece in pieces)
        return [{label: math.log(p) for label, p in one.items()} for one in rates]


def test_the_expected_value_over_ratings_by_hand() -> None:
    """(10 * .3 + 5 * .1) / .4; nothing where ratings have less than a tenth together."""
    of = {label: math.log(p) for label, p in {"10": 0.3, "5": 0.1}.items()}
    assert expected_rating(of) == pytest.approx(8.75)
    assert expected_rating({"3": math.log(0.05)}) is None and expected_rating({}) is None


def test_all_tokens_of_a_window_are_rated_in_one_pass() -> None:
    """By hand: predicted 0, 8, None for activations 0, 4, 0; and 0, 0 for a silent window."""
    llm = Filling({"cat": {"8": 0.5}, "sat": {"0": 0.01}})
    heldout = Heldout((make_window([" the", " cat", " sat"], {1: 4.0}),), (make_window([" a", "\n"]),))
    trials = asyncio.run(Simulation().judge("cats", heldout, Asking(llm, "a/1")))
    assert trials.predicted == [[0.0, pytest.approx(8.0), None], [0.0, 0.0]]
    assert trials.actual == [[0.0, 4.0, 0.0], [0.0, 0.0]]
    assert trials.band == [0, None] and trials.stratum == [None, "random"]
    assert llm.asked[0] == ([" the\t", "\n cat\t", "\n sat\t"], "unknown")
    assert llm.asked[1][0] == [" a\t", "\n⏎\t"]
    value = measure(trials, None).values["correlation"]
    assert value is None or value.value == pytest.approx(1.0)  # two windows are too few for an interval


def predictions(predicted: list[list[float | None]]) -> Predictions:
    """Of four windows of two tokens, two active."""
    actual = [[0.0, 2.0], [4.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    return Predictions(
        predicted, actual, [0, 1, None, None], [None, None, "random", "random"], ["a", "b", "c", "d"]
    )


def test_to_rate_every_token_alike_is_worth_nothing_and_counts() -> None:
    """Left out as unreadable it would raise the mean over features: a simulator that says 0 of everything is
    never wrong then."""
    alike = predictions([[3.0, 3.0]] * 4)
    status, metrics, reason = measured(alike, FACTS)
    assert status == "ok" and metrics.value == Interval(0.0, 0.0, 0.0)
    assert (metrics.n_unreadable, metrics.p_value, metrics.flags) == (0, 1.0, ["constant"])
    assert reason is not None and "every token" in reason
    assert metrics.groups["band"]["0"].value == Interval(0.0, 0.0, 0.0)
    assert all(part == 0 for _, part in influences(alike))
    some = predictions([[None, 3.0], [3.0, None], [3.0, 3.0], [None, None]])
    assert measured(some, FACTS)[0] == "ok" and measured(some, FACTS)[1].flags == ["unreliable", "constant"]
    lost = predictions([[None, None]] * 4)
    assert measured(lost, FACTS)[0] == "unreadable"


def test_one_window_that_is_rated_otherwise_is_a_score() -> None:
    """Without that window nothing varies, which counts as a correlation of 0, not as none."""
    one = predictions([[0.0, 0.0], [5.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # By hand: x is 5 once in eight, y 2 and 4: cov = 20/8 - 5/8 * 6/8, var x = 25/8 - 25/64, var y = 20/8 - 36/64.
    r = (20 / 8 - 30 / 64) / math.sqrt((25 / 8 - 25 / 64) * (20 / 8 - 36 / 64))
    value = measure(one, None).value
    assert value is not None and value.value == pytest.approx(r)
    assert value.low < 0.5 < value.high


def test_token_by_token_shows_the_ratings_so_far() -> None:
    """Expected values are rounded in the prompts and kept as they are in the trials; without probabilities the
    text is the rating, and what is none of 0 to 10 is None and stands as 0."""
    prompts: list[str] = []
    replies = [
        Reply("9", label_logprobs={"9": math.log(0.5), "6": math.log(0.5)}),
        Reply("seven"),
        Reply("11"),
        Reply(" 4"),
    ]

    def answer(prompt: Prompt, index: int) -> Reply:
        prompts.append(prompt.messages[-1].content)
        return replies[len(prompts) - 1]

    scorer = Simulation("token_by_token", n_silent=0)
    heldout = Heldout((make_window(["a", "b", "c", "d"], {0: 1.0}),), ())
    trials = asyncio.run(scorer.judge("letters", heldout, asking(answer)))
    assert trials.predicted == [[7.5, None, None, 4.0]]
    assert [prompt.splitlines()[4:] for prompt in prompts] == [
        ["a"], ["a\t8", "b"], ["a\t8", "b\t0", "c"], ["a\t8", "b\t0", "c\t0", "d"]
    ]  # fmt: skip


def test_windows_are_from_all_deciles_alike() -> None:
    heldout = in_bands(10, 5, 20)
    windows = chosen(heldout, 10, 7, asking(lambda prompt, index: ""))
    assert [window.band for window in windows] == [*range(10), *[None] * 7]
    assert len({id(window) for window in windows}) == 17
    assert len(chosen(heldout, 100, 100, asking(lambda prompt, index: ""))) == 70


def test_the_lexical_backend_rates_token_by_token_and_fills_nothing() -> None:
    heldout = Heldout((make_window([" a", " cat", " b"], {1: 2.0}),), (make_window([" c", " d"]),))
    to = Asking(LexicalLLM(), "a/1")
    trials = asyncio.run(Simulation("token_by_token", highest=9).judge('The token " cat".', heldout, to))
    assert trials.predicted == [[0.0, 9.0, 0.0], [0.0, 0.0]]
    with pytest.raises(LLMBadRequest, match="can't rate the tokens"):
        asyncio.run(Simulation().judge("x", heldout, to))


# --- as plug-ins --------------------------------------------------------------------------------------------


def test_they_are_found_and_declare_what_they_need() -> None:
    for name in ("intruder", "embedding", "example_embedding", "simulation"):
        assert name in plugins.names("scorers")
    assert not {"similar", "marks", "question"}.intersection(plugins.names("scorers"))
    assert "sentence_transformers" in plugins.names("llm")
    assert needs_of(Embedding()) == needs_of(ExampleEmbedding()) == {"embed"}
    assert needs_of(Simulation()) == {"logprobs"} and needs_of(Simulation("token_by_token")) == set()
    assert role_of(Embedding()) == role_of(ExampleEmbedding()) == "embedder"
    assert role_of(Intruder()) == role_of(Simulation()) == "judge"
    assert not needs_explanation(Intruder()) and not needs_explanation(ExampleEmbedding())
    assert needs_explanation(Embedding()) and needs_explanation(Simulation())


RIVER = make_window(["The", " river", " bank", " was", " steep", ".", "\n"], {2: 5.0})


@pytest.mark.parametrize("name", ["intruder", "simulation", "simulation_token", "embedding"])
def test_golden_prompt(name: str) -> None:
    prompts: list[Prompt] = []

    def answer(prompt: Prompt, index: int) -> str:
        prompts.append(prompt)
        return "1"

    to = asking(answer)
    silent = make_window(["for", " x", " in", " «", "rows", "»", ":"])
    if name == "intruder":
        heldout = Heldout((RIVER,) * 5, (silent,))
        asyncio.run(Intruder(per_band=1).judge("", heldout, to))
    elif name == "simulation_token":
        scorer = Simulation("token_by_token", n_silent=0)
        asyncio.run(scorer.judge('The word "bank".', Heldout((RIVER,), ()), to))
    else:
        variables = {"instruction": "Find texts.", "highest": 10, "tokens": []}
        prompts.append(to.prompt(f"score/{name}", explanation='The word "bank".', **variables))
    golden(GOLDEN / f"{name}.txt", prompts[min(3, len(prompts) - 1)])
