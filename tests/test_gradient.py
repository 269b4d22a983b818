"""Gradient SAEs, whose k are chosen with a backward pass: gradients against differences of losses, codes against a
dense float64 reference, through the whole line; what is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_native
import torch
from dense_codes import Array, exact, largest
from safetensors.torch import save_file
from test_kinds import density
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.activations.looked_at import LookedAt
from autointerp.activations.rows import RowStore
from autointerp.cli import app
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError, ModelError, RecipeError
from autointerp.run import Run
from autointerp.subject import gradients as gradients_module
from autointerp.subject.gradients import held_a_token, loss_gradients
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.types import Point, Site
from tiny import CONTEXT, D_MODEL, Tiny
from tiny_families import CONFIGS, EXPERTS, VOCAB, write

WRITTEN: tuple[Point, ...] = ("resid_pre", "resid_mid", "resid_post", "mlp_out", "attn_out", "z", "mlp_in")
LENGTHS = [7, 1, 5]
STEP = 1e-3
IDS = torch.randint(3, VOCAB, (3, 7), generator=torch.Generator().manual_seed(3))


# --- gradients -----------------------------------------------------------------------------------------


def exact_subject(name: str, folder: Path) -> Subject:
    """A tiny model in float64, whose losses can be told apart."""
    files = find_model(str(write(name, folder)))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    return Subject(model.eval().requires_grad_(False), files, torch.device("cpu"), torch.float64)


def losses(subject: Subject, ids: Tensor, lengths: list[int]) -> list[float]:
    """Of each row, token by token."""
    logp = subject.logits(ids).log_softmax(-1)
    return [
        -sum(float(logp[row, at, int(ids[row, at + 1])]) for at in range(length - 1))
        for row, length in enumerate(lengths)
    ]


def test_rows_of_one_token_have_none(llama: Subject) -> None:
    site = Site("resid_post", 1)
    assert not loss_gradients(llama, IDS[:, :1], [1, 1, 1], [site])[site].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_less_precise_models_have_them_too(dtype: Any, tmp_path: Path) -> None:
    files, site = find_model(str(write("llama", tmp_path))), Site("resid_post", 1)
    exactly, about = (
        loss_gradients(Subject.load(files, dtype=one), IDS, LENGTHS, [site])[site].float()
        for one in ("float32", dtype)
    )
    assert float((exactly - about).norm() / exactly.norm()) < 0.05


def test_what_a_backward_pass_holds_is_reckoned(tmp_path: Path) -> None:
    """By hand: of GPT-2's tiny model 3 layers of 18 * 16 + 4 * 24, and 4 * 40; of Gemma 2's 2 heads besides, whose
    weights are written out, 5 * 2 a token of the row."""
    counts = [
        held_a_token(find_model(str(write(name, tmp_path / name))).architecture, 100)
        for name in ("gpt2", "gemma2")
    ]
    assert counts == [3 * 384 + 160, 3 * (384 + 1_000) + 160]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in EXPERTS])
def test_gradients_are_what_a_small_push_changes(name: str, tmp_path: Path) -> None:
    """Central differences along random directions, a site and a row at a time. (Experts' routers jump.) Norms compute
    in float32 whatever the model is in, so a step can't be smaller than this."""
    subject = exact_subject(name, tmp_path)
    points = [point for point in WRITTEN if not (point == "resid_mid" and name == "pythia")]
    generator = torch.Generator().manual_seed(5)
    for point in points:
        site = Site(point, 1)
        gradient = loss_gradients(subject, IDS, LENGTHS, [site])[site]
        assert gradient.shape[:2] == IDS.shape and gradient.abs().max() > 1e-3
        towards = torch.randn(gradient.shape, dtype=torch.float64, generator=generator)
        found: list[list[float]] = []
        for by in (STEP * towards, -STEP * towards):
            with subject.hooked({}, {site: lambda _, x, by=by: x + by}):
                found.append(losses(subject, IDS, LENGTHS))
        slope = [(up - down) / (2 * STEP) for up, down in zip(*found, strict=True)]
        assert (gradient * towards).sum((1, 2)).tolist() == pytest.approx(slope, rel=2e-3, abs=5e-3), point


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return exact_subject("llama", tmp_path_factory.mktemp("llama"))


def test_a_rows_gradients_are_its_own(llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands beside it or behind its end, and however many rows pass at once; its last token has none."""
    site = Site("resid_post", 1)
    together = loss_gradients(llama, IDS, LENGTHS, [site])[site]
    for row, length in enumerate(LENGTHS):
        alone = loss_gradients(llama, IDS[row : row + 1, :length], [length], [site])[site][0]
        torch.testing.assert_close(together[row, :length], alone)
        assert not together[row, length - 1 :].any()
    assert together[0, :-1].any(1).all()
    monkeypatch.setattr(gradients_module, "CPU_HELD", 1)
    one_by_one = loss_gradients(llama, IDS, LENGTHS, [site])[site]
    torch.testing.assert_close(one_by_one, together)


def test_sites_at_once_are_as_each_alone(llama: Subject) -> None:
    """What an earlier one does through a later one counts."""
    sites = [Site("mlp_out", 0), Site("z", 1), Site("resid_post", 1)]
    together = loss_gradients(llama, IDS, LENGTHS, sites)
    for site in sites:
        torch.testing.assert_close(together[site], loss_gradients(llama, IDS, LENGTHS, [site])[site])


def test_it_works_where_nothing_else_has_gradients(llama: Subject) -> None:
    site = Site("resid_post", 0)
    with torch.inference_mode():
        within = loss_gradients(llama, IDS.clone(), LENGTHS, [site])[site]
    assert not within.requires_grad
    torch.testing.assert_close(within, loss_gradients(llama, IDS, LENGTHS, [site])[site])


def test_gradients_that_overflow_are_told(llama: Subject) -> None:
    site = Site("resid_post", 1)
    with (
        llama.hooked({}, {Site("resid_pre", 2): lambda _, x: x * float("inf")}),
        pytest.raises(ModelError, match=r"loss at 'layers.1' are NaN or infinite on \d+ of 13 tokens"),
    ):
        loss_gradients(llama, IDS, LENGTHS, [site])


# --- codes -----------------------------------------------------------------------------------------------

T, D, F = test_native.T, 6, 10


def chosen(t: dict[str, Array], x: Array, g: Array, weight: float, k: int) -> Array:
    """Codes [N, F] in float64, feature by feature."""
    t = exact(t)
    z = x @ t["W_enc"] + t["b_enc"]
    score = np.zeros_like(z)
    for feature in range(z.shape[1]):
        effect = np.abs((g * t["W_dec"][feature]).sum(1))
        score[:, feature] = z[:, feature] + weight * z[:, feature] * effect
    return np.maximum(z, 0) * largest(score, k)


def opened(folder: Path, tensors: dict[str, Any] | None = None, **settings: Any) -> Encoder:
    place = test_native.native(folder, settings | {"selector": "topk", "variant": "gradient"}, tensors)
    spec = find_dictionary(str(place))
    return Encoder(spec, reader_of(spec).load(spec, "cpu"), max_elements=16)


@pytest.mark.parametrize("weight", [0.1, 3.0, 1e4])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_k_are_chosen_by_activation_and_effect(tmp_path: Path, weight: float, k: int) -> None:
    """In tiles of a token and of a few features. What is chosen keeps the pre-activation to the bit."""
    encoder = opened(tmp_path / "a", k=k, gradient_weight=weight)
    rng = np.random.default_rng(8)
    x = rng.normal(size=(40, D)).astype(np.float32)
    g = rng.normal(size=(40, D)).astype(np.float32)
    codes = encoder.encode(torch.tensor(x), torch.tensor(g))
    found = np.zeros((40, F))
    found[codes.token_M, codes.feature_M] = codes.value_M
    expected = chosen(T, x.astype(np.float64), g.astype(np.float64), weight, k)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    plain = opened(tmp_path / "b", k=k).encode(torch.tensor(x))
    differs = set(zip(*map(Tensor.tolist, (plain.token_M, plain.feature_M)), strict=True)) != set(
        zip(*map(Tensor.tolist, (codes.token_M, codes.feature_M)), strict=True)
    )
    assert differs == (k < F), "the gradient matters here, but where all are chosen"


def test_where_nothing_has_an_effect_it_is_the_top_k(tmp_path: Path) -> None:
    encoder, plain = opened(tmp_path / "a", k=3, gradient_weight=2.0), opened(tmp_path / "b", k=3)
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(1))
    one, other = encoder.encode(x, torch.zeros(30, D)), plain.encode(x)
    assert torch.equal(one.feature_M, other.feature_M) and torch.equal(one.value_M, other.value_M)


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    opened(tmp_path / "a", k=3, gradient_weight=2.0)
    with_pass = find_dictionary(str(tmp_path / "a"))
    assert with_pass.gradient_weight == 2.0 and with_pass.approximation is None
    assert "2411.10397" in with_pass.notes[0]
    opened(tmp_path / "b", k=3)
    without = find_dictionary(str(tmp_path / "b"))
    assert without.approximation is not None and "gradient_weight asks for it" in without.approximation
    opened(tmp_path / "c", k=3, gradient_weight=1.0)
    identities = {find_dictionary(str(tmp_path / name)).identity for name in "abc"}
    assert len(identities) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_weight": 0}, "gradient_weight is 0: expected a number above 0"),
        ({"gradient_weight": -1.5}, "gradient_weight is -1.5: expected a number above 0"),
        ({"gradient_weight": "much"}, "gradient_weight is .*much"),
        ({"gradient_weight": 1, "decoder_norm_gate": True}, "different scales"),
        ({"gradient_weight": 1, "reconstructs": False}, "must reconstruct just that"),
        ({"gradient_weight": 1, "is_transcoder": True}, "must reconstruct just that"),
        ({"gradient_weight": 1, "transform": ["layer_norm"]}, r"scales each token \(layer_norm\)"),
        ({"gradient_weight": 1, "selector": "relu", "k": None}, "it takes the selector topk"),
    ],
)
def test_settings_that_do_not_go_with_it(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    given = {"selector": "topk", "k": 3, "variant": "gradient"} | settings
    with pytest.raises(CheckpointError, match=message):
        find_dictionary(str(test_native.native(tmp_path / "a", given)))


def test_it_is_no_parent_and_converts_to_our_layout_alone(tmp_path: Path) -> None:
    opened(tmp_path / "parent", k=3, gradient_weight=2.0)
    test_native.meta(tmp_path / "meta", "../parent", d=D)
    with pytest.raises(CheckpointError, match=r"chooses by gradients \(gradient_weight\)"):
        find_dictionary(str(tmp_path / "meta"))
    test_native.native(tmp_path / "plain", {"selector": "topk", "k": 3})
    test_native.meta(tmp_path / "other", "../plain", d=D, gradient_weight=1.0)
    with pytest.raises(CheckpointError, match="decoder rows, which have no gradients"):
        find_dictionary(str(tmp_path / "other"))
    done = CliRunner().invoke(app, ["sae", "convert", str(tmp_path / "parent"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    written = find_dictionary(str(tmp_path / "out"))
    assert written.format == "native" and written.gradient_weight == 2.0 and written.approximation is None


PLUGIN = """
    from pathlib import Path
    import torch
    from autointerp.dictionaries.spec import Dictionary, DictionarySpec, Weights
    def dictionary():
        spec = DictionarySpec(
            format="", path=Path(), identity="mine", d_in=6, width=10, selector="topk", k=3, hook=None, site=None,
            model=None, corpus=None, context_length=None, prepend_bos=True, gradient_weight=float("{weight}"))
        return Dictionary(spec, lambda device: None)
"""


@pytest.mark.parametrize("weight", ["nan", "inf", "0", "-3"])
def test_a_weight_of_somebodys_own_is_looked_at(
    tmp_path: Path, weight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_gradient.py").write_text(textwrap.dedent(PLUGIN.format(weight=weight)))
    monkeypatch.delitem(sys.modules, "my_gradient", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=f"gradient_weight is {weight}: expected a number above 0"):
        find_dictionary("my_gradient:dictionary")


def test_codes_of_somebodys_own_are_not_chosen_among(tmp_path: Path) -> None:
    spec = find_dictionary(
        str(test_native.native(tmp_path, {"selector": "topk", "k": 3, "gradient_weight": 1}))
    )
    weights = dataclasses.replace(reader_of(spec).load(spec, "cpu"), encode=lambda x_nD: (x_nD, x_nD.long()))
    with pytest.raises(CheckpointError, match=r"a function makes \(encode\) can't be chosen"):
        Encoder(spec, weights)


def test_of_several_sites_each_has_its_own(tmp_path: Path) -> None:
    """In the order in which they are read; of a token that nobody looks at none."""
    encoder = opened(tmp_path / "a", k=3, gradient_weight=3.0)
    a, b = Site("resid_post", 0), Site("mlp_out", 1)
    generator = torch.Generator().manual_seed(4)
    x, g = ({site: torch.randn(2, 4, 3, generator=generator) for site in (a, b)} for _ in range(2))
    look_BT = np.array([[False, True, True, True], [False, True, False, False]])
    inputs = LookedAt(x, np.array([4, 2]), look_BT, torch.device("cpu"), g).inputs(encoder, [b, a])
    codes = inputs.codes(encoder)
    at = [0, 0, 0, 1], [1, 2, 3, 1]
    states, gradients = (torch.cat([of[b], of[a]], dim=2)[at].double().numpy() for of in (x, g))
    found = np.zeros((4, F))
    found[codes.token_M, codes.feature_M] = codes.value_M
    np.testing.assert_allclose(found, chosen(T, states, gradients, 3.0, 3), rtol=1e-5, atol=1e-6)


# --- through the line ------------------------------------------------------------------------------------

SMALL = {"n_tokens": 12_000, "shard_tokens": 4_096, "context_length": CONTEXT}
K, WEIGHT = 12, 60.0


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """A rotated basis and its opposite, rows of unequal effect."""
    basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(D_MODEL, D_MODEL)))
    rows = np.concatenate([basis, -basis]).astype(np.float32)
    t = {"W_enc": rows.T, "b_enc": np.zeros(2 * D_MODEL, np.float32), "W_dec": rows}
    folder = tmp_path_factory.mktemp("g") / "sae"
    written(folder, t, gradient_weight=WEIGHT)
    return folder, t


def written(folder: Path, t: dict[str, Array], hook: str = "layers.1", **settings: Any) -> Path:
    folder.mkdir(parents=True)
    given = {
        "layout": 1,
        "selector": "topk",
        "k": K,
        "variant": "gradient",
        "hook": hook,
        "context_length": CONTEXT,
    }
    (folder / "dictionary.json").write_text(json.dumps(given | settings))
    tensors = {"encoder": torch.tensor(t["W_enc"]).contiguous(), "decoder": torch.tensor(t["W_dec"])}
    save_file(tensors, folder / "dictionary.safetensors")
    return folder


def by_hand(made: Tiny, run: Run) -> tuple[Array, Array, Array]:
    """(states, gradients by them, which tokens are looked at) of the run's rows, one at a time by transformers' own
    loss, which is the mean over all tokens of a row but the first."""
    rows = RowStore.of(run.rows(), bos=True)
    model = AutoModelForCausalLM.from_pretrained(made.model)
    kept: list[Tensor] = []
    model.model.layers[1].register_forward_hook(lambda _module, _args, out: kept.append(out) or None)
    states: list[Tensor] = []
    gradients: list[Tensor] = []
    for at in range(len(rows.length)):
        n = int(rows.length[at])
        ids = torch.from_numpy(rows.tokens(np.array([at]), np.array([0]), n).astype(np.int64))
        kept.clear()
        if n < 2:
            model(ids)
            states.append(kept[0][0].detach())
            gradients.append(torch.zeros_like(states[-1]))
            continue
        loss = (n - 1) * model(ids, labels=ids).loss
        gradients.append(torch.autograd.grad(loss, kept[0])[0][0])
        states.append(kept[0][0].detach())
    looked_at = np.concatenate([np.arange(n) >= 1 for n in rows.length.tolist()])
    return torch.cat(states).double().numpy(), torch.cat(gradients).double().numpy(), looked_at


def test_through_the_whole_line(made: Tiny, fitting: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    """Beside plain top k on the same hook in one run. Densities are those of the reference; scores and probing go
    through."""
    place, t = fitting
    run = pipeline.explain(
        made.recipe(
            dictionaries={"g": {"path": str(place)}, "plain": {"path": str(written(tmp_path / "plain", t))}},
            cache=SMALL | {"random_tokens": 1_000}, features={"ids": [*map(str, range(12))]},
            sampling={"minimum": 5, "minimum_full": 10},
            scorers={"detection": {"use": "detection"}, "sensitivity": {"use": "sensitivity"}},
        ),
        out=tmp_path / "run",
    )  # fmt: skip
    x, g, looked_at = by_hand(made, run)
    codes = {"g": chosen(t, x, g, WEIGHT, K), "plain": chosen(t, x, 0 * g, WEIGHT, K)}
    found, n = density(run), int(looked_at.sum())
    apart = 0
    for feature in range(12):
        for name, dense in codes.items():
            share = float((dense[looked_at, feature] > 0).sum()) / n
            assert found[f"{name}/{feature}"] == pytest.approx(share, abs=3 / n), (name, feature)
        apart += abs(found[f"g/{feature}"] - found[f"plain/{feature}"]) > 20 / n
    assert apart > 6, "the gradient matters here"
    scores = run.scores().to_pydict()
    ok = {
        (scorer, feature.partition("/")[0])
        for scorer, feature, status in zip(scores["scorer"], scores["feature"], scores["status"], strict=True)
        if status == "ok"
    }
    assert {(scorer, name) for scorer in ("detection", "sensitivity") for name in codes} <= ok


def test_a_shard_that_is_made_again_is_the_same(
    made: Tiny, fitting: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    recipe = made.recipe(dictionaries={"g": {"path": str(fitting[0])}}, cache=SMALL)
    run = pipeline.explain(recipe, out=tmp_path / "run", until="cache")
    folder = tmp_path / "run" / "cache" / "g"
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert len(before) > 1
    last = sorted(folder.glob("0*.jsonl"))[-1]
    last.unlink()
    last.with_suffix(".safetensors").unlink()
    pipeline.run_line(run, until="cache")
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before


def test_inspect_and_check(
    made: Tiny, fitting: tuple[Path, dict[str, Array]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, t = fitting
    monkeypatch.setenv("COLUMNS", "250")
    shown = CliRunner().invoke(app, ["sae", "inspect", str(place)])
    words = " ".join(shown.output.split())
    assert shown.exit_code == 0 and f"z (1 + {WEIGHT:g} |W_dec g|)" in words and "approximated" not in words
    given = ["sae", "check", str(place), "--model", str(made.model), "--corpus", str(made.corpus)]
    done = CliRunner().invoke(app, [*given, "--n-tokens", "1000"])
    assert done.exit_code == 0, done.output
    plain = written(tmp_path / "plain", t)
    other = CliRunner().invoke(app, ["sae", "check", str(plain), *given[3:], "--n-tokens", "1000"])
    first, second = (re.search(r"as read +│ +(\S+) +│ +(\S+)", one.output) for one in (done, other))
    assert first is not None and second is not None and first[1] == second[1] == f"{K:.1f}", done.output
    # On rows of orthogonal directions the largest activations reconstruct best.
    assert float(first[2]) > 1.02 * float(second[2]), "the gradients matter here"


@pytest.mark.parametrize("hook", ["layers.1.mlp_in_normalized", "layers.1.attn_in_normalized"])
def test_a_place_that_no_module_emits_is_refused(
    made: Tiny, fitting: tuple[Path, dict[str, Array]], tmp_path: Path, hook: str
) -> None:
    place = written(tmp_path / "sae", fitting[1], hook, gradient_weight=1.0)
    with pytest.raises(
        CheckpointError, match=rf"nothing can be differentiated by '{hook}'.* Leave gradient_weight out"
    ):
        pipeline.explain(made.recipe(dictionaries={"auto": {"path": str(place)}}), out=tmp_path / "run")


def test_stored_activations_and_ablating_are_refused(
    made: Tiny, fitting: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    sections = {"dictionaries": {"auto": {"path": str(fitting[0])}}}
    recipe = made.recipe(**sections, intervention={"ablate": True, "always": True})
    with pytest.raises(RecipeError, match="depends on the tokens behind it"):
        pipeline.explain(recipe, out=tmp_path / "run")
    folder = tmp_path / "stored"
    folder.mkdir()
    tokens = torch.arange(40).reshape(10, 4)
    save_file({"activations": torch.randn(10, 4, D_MODEL), "tokens": tokens}, folder / "a.safetensors")
    recipe = made.recipe(**sections, activations={"path": str(folder), "documents": "rows"})
    del recipe["corpus"]
    with pytest.raises(CheckpointError, match="files of activations don't hold"):
        pipeline.explain(recipe, out=tmp_path / "files")
