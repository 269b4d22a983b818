"""The intervene stage, and what explainers and scorers make of it: on the tiny model, the demo, a known circuit."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from autointerp import pipeline
from autointerp.asking import Asking
from autointerp.demo import MODEL
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.effects import Effects, EffectTexts, Intervention, SceneTexts, Written, read_effects
from autointerp.errors import NoEvidence, RecipeError
from autointerp.evidence import Evidence
from autointerp.explainers.effect import Effect, variables_of
from autointerp.llm.exchange import Reply
from autointerp.llm.protocol import Capabilities, LLMIdentity
from autointerp.metrics import measure
from autointerp.metrics.influence import influences
from autointerp.prompting import Prompt
from autointerp.report.summary import summarise
from autointerp.run import Run
from autointerp.scorers.intervention import Intervention as InterventionScorer
from autointerp.splits import Heldout, Shown
from autointerp.stages.abilities import check_abilities
from autointerp.stages.asked import Asked
from autointerp.stages.sample import load_vocabulary, unit_windows
from autointerp.subject.interventions import direction, other_feature, prompts, random_direction
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.subject.steering import Ablating, Adding, Steering
from autointerp.subject.strengths import Search, grid
from autointerp.types import FeatureId, Site, Window
from here import contents, device_here
from tiny import Tiny

SMALL = {"n_shown": 5, "n_select": 5, "n_heldout": 6, "targets": [0.33, 1.0], "shortest": 2, "always": True}


def effects_of(run: Run, dictionary: str = "layers.1") -> dict[str, Effects]:
    return {record["key"]: read_effects(record) for record in run.intervene(dictionary).records()}


@pytest.fixture(scope="module")
def steered(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steered") / "run"
    with device_here():
        recipe = made.recipe(intervention=SMALL | {"ablate": True}, features={"n": 8})
        pipeline.explain(recipe, out=out, until="intervene")
    return out


def test_prompts_are_of_their_split_and_end_before_the_feature_fires(steered: Path) -> None:
    run = Run.open(steered)
    vocabulary = load_vocabulary(run)
    n_looked_at = 0
    for key, effects in effects_of(run).items():
        if effects.status != "ok":
            continue
        windows = unit_windows(run, "layers.1", "000000000", [key], vocabulary)[key]
        documents: dict[str, set[str]] = {}
        for split in ("shown", "select", "heldout"):
            scene, active = getattr(effects, split), getattr(windows, split)(key).active
            documents[split] = {active[window].document for window in scene.windows}
            for window, begin, end in zip(scene.windows, scene.begins, scene.ends, strict=True):
                activations = active[window].activations
                assert activations[end] > 0 and not any(activations[:end])
                assert 2 <= end - begin <= 64
                n_looked_at += 1
        assert not documents["heldout"] & (documents["shown"] | documents["select"])
        assert not documents["shown"] & documents["select"]
    assert n_looked_at > 40


def test_every_push_that_is_ok_has_its_kl_and_its_texts(steered: Path) -> None:
    run = Run.open(steered)
    found = [effects for effects in effects_of(run).values() if effects.status == "ok"]
    assert len(found) >= 4
    for effects in found:
        assert effects.shown and effects.select and effects.heldout and effects.ablated
        assert {one.arm for one in effects.shown.steered} == {"feature"}
        assert {one.arm for one in effects.heldout.steered} == {"feature", "random", "other"}
        for one in effects.heldout.steered:
            assert one.target_kl is not None and math.isfinite(one.kl)
            assert (one.status == "ok") == (abs(one.kl - one.target_kl) <= 0.1 * one.target_kl)
            assert len(one.texts) == (len(effects.heldout.windows) if one.status == "ok" else 0)
            assert all(len(text) == 8 for text in one.texts)
            assert list(one.raised.effects) == sorted(one.raised.effects, reverse=True)
            assert list(one.lowered.effects) == sorted(one.lowered.effects)
        (taken,) = effects.ablated.steered
        assert taken.kl > 0 and taken.target_kl is None


def test_a_kill_and_another_order_of_features_give_the_same_records(
    steered: Path, made: Tiny, tmp_path: Path
) -> None:
    """Half the features first, then all: extended, not made anew, and byte for byte the same."""
    with device_here():
        for n in (3, 8):
            recipe = made.recipe(intervention=SMALL | {"ablate": True}, features={"n": n})
            pipeline.explain(recipe, out=tmp_path / "run", until="intervene")
    want, have = (
        sorted((r["key"], r) for r in run.intervene("layers.1").records())
        for run in map(Run.open, (steered, tmp_path / "run"))
    )
    assert want == have
    before = contents(tmp_path / "run" / "intervene")
    with device_here():
        pipeline.explain(recipe, out=tmp_path / "run", until="intervene")
    assert contents(tmp_path / "run" / "intervene") == before


def test_a_recipe_that_needs_no_effects_has_none(made: Tiny) -> None:
    _, run = pipeline.prepare(made.recipe(), Path("nowhere"))
    assert not run.needs_effects and run.without_effects("layers.1") == []


def test_a_site_that_cannot_be_pushed_is_told_when_the_recipe_is_read(made: Tiny) -> None:
    recipe = made.recipe(scorers={"intervention": {"use": "intervention"}})
    recipe["dictionaries"] = {"auto": {"path": str(made.sae), "hook": "layers.1.mlp_in_normalized"}}
    with pytest.raises(RecipeError, match=r"scorers.intervention: it needs features .* can't be written"):
        pipeline.prepare(recipe, Path("nowhere"))


def test_a_judge_without_log_probabilities_is_refused(made: Tiny, tmp_path: Path) -> None:
    recipe = made.recipe(
        scorers={"intervention": {"use": "intervention"}}, intervention=SMALL, features={"n": 1}
    )
    with (
        device_here(),
        pytest.raises(RecipeError, match=r"intervention: it needs log-probabilities.*lexical"),
    ):
        pipeline.explain(recipe, out=tmp_path / "run")


@pytest.mark.parametrize("fault", [{"targets": [1.0, 0.1]}, {"longest": 2}, {"weakest": 0}, {"n_tokens": 0}])
def test_settings_that_make_no_sense_are_named(made: Tiny, fault: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"intervention\.\w+: .*found"):
        pipeline.prepare(made.recipe(intervention=fault), Path("nowhere"))


# --- pieces ----------------------------------------------------------------------------------------------


def window(number: int, activations: tuple[float, ...], first: int = 7) -> Window:
    ids = (first, *range(10, 9 + len(activations)))
    return Window(f"{number:016x}", 0, ids, tuple(map(str, ids)), activations, 0)


def test_prompts_by_hand() -> None:
    settings = Intervention(shortest=2, longest=3)
    active = [
        window(0, (0, 0, 0, 0, 5.0)),  # four silent tokens: the last three
        window(1, (0, 1.0, 0, 0)),  # one: too short
        window(2, (0, 0, 2.0, 9.0), first=1),  # begins with BOS, which is put in front anyway: one left
        window(3, (0, 0, 2.0, 9.0)),
    ]
    found = prompts(active, 10, 0, settings, bos=1)
    assert [(p.window, p.begin, p.end, p.token_ids) for p in found] == [
        (0, 1, 4, [1, 10, 11, 12]),
        (3, 0, 2, [1, 7, 10]),
    ]
    assert [p.end for p in prompts(active, 10, 0, settings, None, behind=True)] == [5, 2, 3, 3]
    many = [window(n, (0, 0, 0, 1.0)) for n in range(30)]
    few, more = ({p.window for p in prompts(many, n, 3, settings, None)} for n in (5, 12))
    assert few < more and len(more) == 12


def test_controls_have_the_norm_of_the_row_and_another_row(made: Tiny) -> None:
    spec = find_dictionary(str(made.sae))
    weights = reader_of(spec).load(spec, "cpu")
    row = 3 * direction(weights, FeatureId("d", 5))
    assert torch.equal(3 * direction(weights, FeatureId("d", 5, "-")), -row)
    widths = [40, len(row) - 40]
    drawn = random_direction(row, widths, 0, "d/5")
    for mine, its in zip(drawn.split(widths), row.split(widths), strict=True):
        assert float(mine.norm()) == pytest.approx(float(its.norm()), rel=1e-5)
    assert torch.equal(drawn, random_direction(row, widths, 0, "d/5"))
    assert not torch.equal(drawn, random_direction(row, widths, 0, "d/6"))
    others = {str(other_feature(weights, spec, FeatureId("d", n), 0)) for n in range(60)}
    assert len(others) > 40 and all(other != "None" for other in others)


def test_ablation_takes_away_what_the_feature_adds_and_nothing_else(made: Tiny) -> None:
    """The sum over all features that fire is the whole reconstruction: ablated one by one, from a clean
    activation, they add up to it. What is left is the dictionary's error and its bias."""
    spec = find_dictionary(str(made.sae))
    encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"))
    subject = Subject.load(find_model(str(made.model), None))
    site, ids = Site("resid_post", 1), torch.tensor([[5, 70, 9, 44]])
    clean = subject.capture(ids, [site])[site]
    codes = encoder.encode(clean[0])
    taken = torch.zeros_like(clean)
    for column in codes.feature_M.unique().tolist():
        with Ablating(encoder, column, site, site).on(subject, torch.tensor([0])):
            taken += clean - subject.capture(ids, [site])[site]
    torch.testing.assert_close(taken[0], encoder.decode(codes, clean[0]), rtol=1e-3, atol=1e-4)


# --- a known circuit -------------------------------------------------------------------------------------


def auroc(value: torch.Tensor, truth: torch.Tensor) -> float:
    """By counting pairs; ties count half."""
    yes, no = value[truth], value[~truth]
    order = torch.sort(no).values
    below = torch.searchsorted(order, yes, right=False) + torch.searchsorted(order, yes, right=True)
    return float(below.sum() / 2 / len(yes) / len(no))


def test_in_a_known_circuit_pushing_the_feature_of_a_token_raises_that_token(real: Path) -> None:
    """f_a f_b f_c f_d SEL_k -> the feature token in slot k. For each token t the feature that separates prompts
    whose right answer is t from all others perfectly is looked for, and pushed on prompts of other answers."""
    subject = Subject.load(find_model(str(real / "models" / "toy-routing-gpt2"), None))
    spec = find_dictionary(str(real / "saes" / "toy-routing" / "saelens"))
    weights = reader_of(spec).load(spec, "cpu")
    site = Site("resid_post", 1)
    generator = torch.Generator().manual_seed(0)
    slots = torch.randint(8, (3_000, 4), generator=generator)
    selector = torch.randint(4, (3_000,), generator=generator)
    answer = slots.gather(1, selector[:, None])[:, 0]
    x_ND = subject.capture(torch.cat([slots, 8 + selector[:, None]], dim=1), [site])[site][:, -1]
    codes = Encoder(spec, weights).encode(x_ND)
    value_NF = torch.zeros(len(x_ND), spec.width).index_put((codes.token_M, codes.feature_M), codes.value_M)
    steering = Steering(subject, (site,), 12)
    for token in range(8):
        scores = [auroc(value_NF[:, feature], answer == token) for feature in range(spec.width)]
        best = [feature for feature, score in enumerate(scores) if score > 0.9999]
        assert best, (token, max(scores))
        others = [n for n in range(40) if answer[n] != token][:20]
        begun = steering.begin([[*slots[n].tolist(), 8 + int(selector[n])] for n in others])
        row = direction(weights, FeatureId("layers.1", best[0]))
        search = Search((1.0,), [s * begun.norm / float(row.norm()) for s in grid(0.001, 100, 11)])
        while wanted := search.wanted():
            search.note(wanted, steering.kls(begun, Adding((site,), torch.stack([s * row for s in wanted]))))
        found = search.found(1.0)
        assert found is not None and found.status == "ok"
        ((raised, _),) = steering.changes(begun, Adding((site,), found.strength * row[None]), 3)
        assert raised.ids[0] == token, (token, best[0], raised)


# --- the scorer and the explainer ------------------------------------------------------------------------


def scene(texts: dict[str, list[str]]) -> SceneTexts:
    """Two prompts; of each arm one push of 1 nat."""
    pushes = tuple(
        Written(arm, 1.0, "ok", 1.02, (" cats", " dog"), (" the",), tuple(of)) for arm, of in texts.items()
    )
    return SceneTexts(("The ", "A "), ("a" * 16, "b" * 16), ("mat", "rug"), pushes)


class Counting:
    """Finds an explanation the likelier the more of its words stand in the prompt: minus one nat a word that doesn't.
    Writes its candidates one after the other."""

    identity = LLMIdentity("counting")
    capabilities = Capabilities(logprobs=True)

    def __init__(self, candidates: Sequence[str] = ()) -> None:
        self.candidates = candidates
        self.read: list[str] = []

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        text = prompt.messages[-1].content
        self.read.append(text)
        return [0.0 if word in text else -1.0 for word in continuation.split()]

    async def generate(self, prompt: Prompt, *, index: int = 0, **_: Any) -> Reply:
        return Reply(self.candidates[index])

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError

    async def close(self) -> None:
        return None


def test_a_score_by_hand() -> None:
    """Of "cat dog" one word stands in the first pushed text and both in the second, none in the clean ones: gains of
    1 and 2 nats, a half and 1 a token. The random push gains 1 and nothing."""
    pushed = scene({"feature": ["cat", "dog cat"], "random": ["dog", "rug"], "other": ["mat", "mat"]})
    heldout = Heldout((), (), pushed)
    trials = asyncio.run(InterventionScorer().judge("cat dog", heldout, Asking(Counting(), "d/1")))
    gains = {}
    for n, arm in enumerate(trials.arm):
        steered, clean = trials.logp_steered[n], trials.logp_clean[n]
        assert steered is not None and clean is not None
        gains.setdefault(arm, []).append(steered - clean)
    assert gains == {"feature": [1, 2], "random": [1, 0], "other": [0, 0]}
    assert trials.n_tokens == [2] * 6
    metrics = measure(trials)
    assert metrics.value is not None and metrics.value.value == pytest.approx(1.5)
    a_token = metrics.values["gain_per_token"]
    assert a_token is not None and a_token.value == pytest.approx(0.75)
    over = metrics.values["over_random"]
    assert over is not None and over.value == pytest.approx(1.0)


def test_what_an_explanation_loses_where_its_feature_is_taken_away() -> None:
    """Both words of the explanation stand in the first clean text and one in the second; ablated, one and none:
    P(explanation | clean) is above P(explanation | ablated) by 1 nat in both. The pushes, of other prompts and with a
    target, are not touched by it."""
    pushed = scene({"feature": ["cat", "dog cat"]})
    taken = Written("ablated", None, "ok", 0.2, (), (), ("a cat", "no"))
    ablated = SceneTexts(("It ", "He "), ("c" * 16, "d" * 16), ("a dog cat", "dog"), (taken,))
    heldout = Heldout((), (), pushed, ablated)
    trials = asyncio.run(InterventionScorer().judge("cat dog", heldout, Asking(Counting(), "d/1")))
    found, without = (
        measure(trials),
        measure(
            asyncio.run(
                InterventionScorer().judge("cat dog", Heldout((), (), pushed), Asking(Counting(), "d/1"))
            )
        ),
    )
    lost = found.values["ablated"]
    assert lost is not None and lost.value == pytest.approx(1.0)
    assert found.groups["target_kl"].keys() == {"1"} and "over_ablated" not in found.values
    assert found.values["gain"] == without.values["gain"] and found.n == without.n
    influence: dict[str, float] = {}
    for document, part in influences(trials, "gain_per_token"):
        influence[document] = influence.get(document, 0.0) + part
    # Documents gain a half and 1 a token: each adds half of what it is off the mean of 0.75.
    assert influence == pytest.approx({"a" * 8: -0.125, "b" * 8: 0.125})


def test_a_push_without_a_strength_has_no_probability_and_a_feature_without_prompts_no_trials() -> None:
    missed = Written("feature", 3.0, "no_bracket", 0.4, (), (), ())
    pushed = dataclasses.replace(scene({"feature": ["cat", "cat"]}), steered=(missed,))
    trials = asyncio.run(
        InterventionScorer().judge("cat", Heldout((), (), pushed), Asking(Counting(), "d/1"))
    )
    assert trials.kl == [None, None] == trials.logp_steered
    assert (
        len(asyncio.run(InterventionScorer().judge("cat", Heldout((), ()), Asking(Counting(), "d/1")))) == 0
    )


def test_the_best_candidate_is_chosen_on_the_select_prompts_alone() -> None:
    """Shown texts speak for `dog`, select texts for `cat`. An unreadable candidate is passed over."""
    texts = EffectTexts(scene({"feature": ["dog", "dog"]}), scene({"feature": ["cat", "cat cat"]}))
    evidence = Evidence(Shown((), ()), effects=texts)
    llm = Counting(["EXPLANATION: dog\nLABEL: d", "no idea", "EXPLANATION: cat\nLABEL: c"])
    explained = asyncio.run(Effect(n_candidates=3).explain(evidence, Asking(llm, "d/1")))
    assert (explained.text, explained.label) == ("cat", "c")
    assert len(llm.read) == 2 * 2 * 2 and not any("dog" in text for text in llm.read)
    with pytest.raises(NoEvidence, match="too few prompts"):
        asyncio.run(Effect().explain(Evidence(Shown((), ())), Asking(llm, "d/1")))


class Mute(Counting):
    """Writes candidates and gives no log-probabilities, as chat APIs do."""

    capabilities = Capabilities()

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise AssertionError


def test_the_judge_chooses_where_it_is_another_llm() -> None:
    texts = EffectTexts(scene({"feature": ["dog", "dog"]}), scene({"feature": ["cat", "cat cat"]}))
    evidence, judge = Evidence(Shown((), ()), effects=texts), Counting()
    writes = Mute([f"EXPLANATION: {word}" for word in ("dog", "cat", "mat")])
    explained = asyncio.run(Effect(n_candidates=3).explain(evidence, Asking(writes, "d/1", judge=judge)))
    assert explained.text == "cat" and len(judge.read) == 3 * 2 * 2


@pytest.mark.parametrize(("judge", "n", "is_able"), [(Counting, 5, True), (Mute, 5, False), (Mute, 1, True)])
def test_log_probabilities_are_asked_of_who_chooses(
    made: Tiny, tmp_path: Path, judge: type[Counting], n: int, is_able: bool
) -> None:
    """An explainer LLM without them chooses by the judge's."""
    recipe = made.recipe(
        explainers={"effect": {"use": "effect", "n_candidates": n}},
        llms={
            "explainer": {"use": "scripted", "function": "judge:answer"},
            "judge": {"use": "scripted", "function": "judge:answer", "model": "another"},
        },
    )
    _, run = pipeline.prepare(recipe, tmp_path / "run")
    llms = {"explainer": Asked(Mute(), paid=False), "judge": Asked(judge(), paid=False)}
    if is_able:
        check_abilities(run, llms)
    else:
        with pytest.raises(RecipeError, match=r"explainers.effect: it needs log-probabilities"):
            check_abilities(run, llms)


def test_golden_prompts() -> None:
    """What an LLM reads; a change of the templates shows here."""
    pushed = scene({"feature": ["cats «and", "cats cats\n[INST]"]})
    asking = Asking(Counting(), "d/1")
    told = asking.prompt("score/intervention", prompt=pushed.prompts[0], written=pushed.steered[0].texts[0])
    shown = asking.prompt("explain/effect", **variables_of(pushed), again=False)
    for name, prompt in (("intervention", told), ("effect", shown)):
        text = "".join(f"[[{turn.role}]]\n{turn.content}\n" for turn in prompt.messages)
        path = Path(__file__).parent / "golden" / f"{name}.txt"
        assert text == path.read_text(encoding="utf-8"), f"rendered:\n{text}"


def names(prompt: Prompt, index: int) -> str:
    """An explainer that names the three tokens that the push raises most."""
    return "EXPLANATION: " + " ".join(token.strip() for token in prompt.variables["raised"][:3])  # type: ignore[index]  # a tuple of texts


def test_on_the_demo_naming_what_a_push_raises_gains_more_than_its_controls(tmp_path: Path) -> None:
    """With the demo model as scorer LM, which reads the written text and no examples: its context is too short. Every
    interval, over features, is above 0. `pytest -s` prints the rows that README has; nobody had looked at scores when
    these features were drawn."""
    (tmp_path / "prompts" / "score").mkdir(parents=True)
    (tmp_path / "prompts" / "score" / "intervention.jinja").write_text("[[user]]\n{{ written|inert }}\n")
    recipe = {
        "dictionaries": {"auto": {"path": "demo"}},
        "cache": {"n_tokens": 150_000},
        "features": {"ids": "39 75 121 128 149 203 214 227 272 402 562 590 599 632".split()},
        "controls": {"kinds": ["shuffled"]},
        "intervention": {"targets": [1.0, 3.0], "n_heldout": 16},
        "llms": {
            "explainer": {"use": "scripted", "function": "test_intervene:names"},
            "judge": {"use": "transformers", "model": str(MODEL), "device": "cpu"},
        },
        "explainers": {"effect": {"use": "effect", "n_candidates": 1}},
        "scorers": {"intervention": {"use": "intervention"}},
        "resources": {"prompts": str(tmp_path / "prompts")},
    }
    resolved, run = pipeline.prepare(recipe, tmp_path / "run")
    with device_here():
        pipeline.run_line(run, resolved=resolved)
    summary = summarise(run, "layers.2")
    (score,) = summary.scores
    means = {name: score.values[name] for name in ("gain", "gain_per_token", "over_random", "over_other")}
    (shuffled,), (a_token,) = summary.controls, summary.per_token
    means |= {"over shuffled": shuffled.difference, "a token": a_token.difference}
    for name, mean in means.items():
        print(f"{name}: {mean}")
        assert mean.n == 14 and mean.low is not None and mean.low > 0, (name, mean)
