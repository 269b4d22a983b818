"""Temporal SAEs: codes that depend on the tokens before, against a token-by-token reference in float64; through the
whole line; what is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_native
import torch
import yaml
from dense_codes import Array, exact, largest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from test_kinds import density, states
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.activations.looked_at import LookedAt
from autointerp.activations.rows import RowStore
from autointerp.cli import app
from autointerp.dictionaries import context
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError, RecipeError
from autointerp.run import Run
from autointerp.types import Site
from tiny import CONTEXT, D_MODEL, Tiny

D, F, HEADS, SCALE = 6, 12, 2, 0.25
HERE = Site("resid_post", 4)
CPU = torch.device("cpu")
MAPS = ("k_ctx", "q_target", "v_ctx", "c_proj")
TOPK = {"sae_diff_type": "topk", "kval_topk": 3}


def tensors(
    n_layers: int = 1, bottleneck: int = 2, *, tied: bool = True, d_in: int = D, width: int = F, seed: int = 0
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    keys = width // bottleneck
    shapes: dict[str, tuple[int, ...]] = {"D": (width, d_in), "b": (1, d_in)}
    if not tied:
        shapes["E"] = (d_in, width)
    for layer in range(n_layers):
        for name, n_out in (("k_ctx", keys), ("q_target", keys), ("v_ctx", width), ("c_proj", width)):
            shapes[f"attn_layers.{layer}.{name}.weight"] = (n_out, width)
            shapes[f"attn_layers.{layer}.{name}.bias"] = (n_out,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def checkpoint(folder: Path, t: dict[str, Array], *, pickled: bool = False, **sae: Any) -> Path:
    width, d_in = t["D"].shape
    n_layers = sum(name.endswith("k_ctx.weight") for name in t)
    own = {
        "exp_factor": width / d_in, "n_heads": HEADS, "n_attn_layers": n_layers, "scaling_factor": SCALE,
        "bottleneck_factor": width // len(t["attn_layers.0.k_ctx.bias"]), "tied_weights": "E" not in t,
    }  # fmt: skip
    conf = {
        "llm": {"dimin": d_in, "model_hf_name": "org/m"},
        "sae": own | TOPK | sae,
        "data": {"hf_name": "org/text", "context_length": 500, "dtype": "bfloat16"},
    }
    folder.mkdir(parents=True)
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf))
    as_torch = {name: torch.tensor(value) for name, value in t.items()}
    if pickled:
        torch.save({"sae": as_torch, "step": 3}, folder / "latest_ckpt.pt")
    else:
        save_file(as_torch, folder / "latest_ckpt.safetensors")
    return folder


def by_head(x_TE: Array) -> list[Array]:
    return np.split(x_TE, HEADS, axis=1)


def predicted(t: dict[str, Array], x_TD: Array) -> Array:
    """Of x s - b, token by token and head by head, as the paper's code has it."""
    t = exact(t)
    decoder, encoder = t["D"], t.get("E", t["D"].T)
    width, d_in = decoder.shape
    left_TD = x_TD.astype(np.float64) * SCALE - t["b"][0]
    total_TD = np.zeros_like(left_TD)
    for layer in range(sum(name.endswith("k_ctx.weight") for name in t)):
        z_TF = np.maximum(left_TD / (4 * d_in) @ encoder, 0)
        before_TF = np.concatenate([np.zeros((1, width)), z_TF[:-1]])
        weights = {name: t[f"attn_layers.{layer}.{name}.weight"] for name in MAPS}
        biases = {name: t[f"attn_layers.{layer}.{name}.bias"] for name in MAPS}
        query_HTe = by_head(z_TF @ weights["q_target"].T + biases["q_target"])
        key_HTe = by_head(before_TF @ weights["k_ctx"].T + biases["k_ctx"])
        value_HTe = by_head(before_TF @ weights["v_ctx"].T + biases["v_ctx"])
        explained_TD = np.zeros_like(left_TD)
        for now in range(len(z_TF)):
            seen: list[Array] = []
            for query_Te, key_Te, value_Te in zip(query_HTe, key_HTe, value_HTe, strict=True):
                score = key_Te[: now + 1] @ query_Te[now] / np.sqrt(key_Te.shape[1])
                weight = np.exp(score - score.max())
                seen.append(weight / weight.sum() @ value_Te[: now + 1])
            out = weights["c_proj"] @ np.concatenate(seen) + biases["c_proj"]
            towards = np.maximum(out, 0) @ decoder
            share = towards @ left_TD[now] / (np.linalg.norm(towards) + 1e-6) ** 2
            explained_TD[now] = share * towards
        total_TD += explained_TD
        left_TD = left_TD - explained_TD
    return total_TD


def reference(t: dict[str, Array], x_TD: Array, k: int | None = None) -> tuple[Array, Array]:
    """(codes [T, F], reconstruction [T, D] in the model's units) of one row."""
    told = predicted(t, x_TD)
    t = exact(t)
    d_in = t["D"].shape[1]
    left = x_TD.astype(np.float64) * SCALE - t["b"][0] - told
    z = np.maximum(left / (4 * d_in) @ t.get("E", t["D"].T), 0)
    if k is not None:
        z = z * largest(z, k)
    elif "expected_min_act" in t:
        z = z * (z > t["expected_min_act"])
    return z, (z @ t["D"] + told + t["b"][0]) / SCALE


def rows_of(lengths: list[int], d_in: int = D, seed: int = 5) -> NDArray[np.float32]:
    """[B, T, D], NaN behind each row's end."""
    x = np.random.default_rng(seed).normal(1.0, 4.0, (len(lengths), max(lengths), d_in)).astype(np.float32)
    for row, length in enumerate(lengths):
        x[row, length:] = np.nan
    return x


def opened(place: Path) -> Encoder:
    spec = find_dictionary(str(place))
    assert spec.needs_sequence
    return Encoder(spec, reader_of(spec).load(spec, "cpu"))


def through(
    encoder: Encoder, x_BTD: NDArray[np.float32], lengths: list[int], first: int = 0
) -> tuple[Array, Array]:
    """(codes [N, F], reconstruction [N, D]) of the tokens from position `first` on, as a run has them."""
    look_BT = (np.arange(x_BTD.shape[1]) >= first) & (np.arange(x_BTD.shape[1]) < np.array(lengths)[:, None])
    inputs = LookedAt({HERE: torch.tensor(x_BTD)}, np.array(lengths), look_BT, CPU).inputs(encoder, [HERE])
    codes = encoder.encode(inputs.encoded)
    found = np.zeros((len(inputs.x_ND), encoder.spec.width))
    found[codes.token_M, codes.feature_M] = codes.value_M
    return found, inputs.decoded(encoder, codes).numpy()


KINDS: dict[str, tuple[dict[str, Array], dict[str, Any], int | None]] = {
    "tied, top k": (tensors(), {}, 3),
    "one encoder and one decoder": (tensors(tied=False), {}, 3),
    "two layers, keys as wide as the dictionary": (tensors(2, 1), {}, 3),
    "relu": (tensors(), {"sae_diff_type": "relu", "kval_topk": None}, None),
    "threshold": (
        tensors() | {"expected_min_act": np.array([0.1], np.float32)}, {"sae_diff_type": "batchtopk"}, None
    ),
}  # fmt: skip


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_codes_are_of_what_the_tokens_before_leave(
    tmp_path: Path, name: str, pickled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 1 to 9 tokens, four at a time in the attention, position 0 read and not looked at."""
    monkeypatch.setattr(context, "TOKENS", 4)
    t, sae, k = KINDS[name]
    encoder = opened(checkpoint(tmp_path / "layer_4" / "temporal", t, pickled=pickled, **sae))
    assert encoder.spec.site == HERE and encoder.spec.model == "org/m" and encoder.spec.k == k
    lengths = [9, 1, 4, 8, 5]
    x_BTD = rows_of(lengths)
    for first in (0, 1):
        codes, x_hat = through(encoder, x_BTD, lengths, first)
        parts = [reference(t, x_BTD[row, :length], k) for row, length in enumerate(lengths)]
        expected = np.concatenate([z[first:] for z, _ in parts])
        assert 0.05 < (expected > 0).mean() < 0.8, "a reference that hardly or always fires tests nothing"
        np.testing.assert_array_equal(codes > 0, expected > 0)
        np.testing.assert_allclose(codes, expected, rtol=1e-5, atol=2e-6 * expected.max())
        expected_hat = np.concatenate([y[first:] for _, y in parts])
        np.testing.assert_allclose(x_hat, expected_hat, rtol=1e-5, atol=5e-6 * np.abs(expected_hat).max())
    alone = reference(t, x_BTD[0, :1], k)[0]
    again = np.concatenate([reference(t, x_BTD[0, at : at + 1], k)[0] for at in range(9)])
    assert np.allclose(alone[0], again[0])
    assert not np.allclose(reference(t, x_BTD[0], k)[0][1:], again[1:], atol=1e-3), "the context matters here"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return opened(checkpoint(tmp_path_factory.mktemp("temporal") / "layer_4", tensors()))


@settings(max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.data())
def test_a_rows_codes_hang_on_no_other_row_and_on_nothing_behind(
    encoder: Encoder, lengths: list[int], data: st.DataObject
) -> None:
    """To the bit whatever else is in the batch; what stands behind a token changes a prediction by rounding alone."""
    x = torch.tensor(rows_of(lengths))
    together = encoder.predicted(x, lengths)
    assert torch.isfinite(together).all()
    row = data.draw(st.integers(0, len(lengths) - 1))
    alone = encoder.predicted(x[row : row + 1, : lengths[row]], [lengths[row]])
    assert torch.equal(together[row, : lengths[row]], alone[0])
    cut = data.draw(st.integers(1, lengths[row]))
    shorter = encoder.predicted(x[row : row + 1], [cut])
    torch.testing.assert_close(shorter[0, :cut], alone[0, :cut], rtol=1e-4, atol=1e-4)
    assert not shorter[0, cut:].any()


def test_a_slice_of_a_relu_dictionary_gives_its_own_columns(tmp_path: Path) -> None:
    whole = opened(checkpoint(tmp_path / "layer_4", tensors(), sae_diff_type="relu"))
    assert whole.spec.feature_sliceable
    x_BTD = rows_of([7, 3])
    codes, _ = through(whole, x_BTD, [7, 3])
    look = np.array([[True] * 7, [True] * 3 + [False] * 4])
    some = whole.sliced([2, 9])
    inputs = LookedAt({HERE: torch.tensor(x_BTD)}, np.array([7, 3]), look, CPU).inputs(some, [HERE])
    found = some.encode(inputs.encoded)
    assert set(found.feature_M.tolist()) == {2, 9}
    dense = np.zeros((10, F))
    dense[found.token_M, found.feature_M] = found.value_M
    np.testing.assert_allclose(dense[:, [2, 9]], codes[:, [2, 9]], rtol=1e-6)
    assert not dense[:, [0, 1, 3]].any()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"n_attn_layers": 2}, r"holds 1 layers of attention, but conf.yaml says that n_attn_layers is 2"),
    ({"n_attn_layers": 2**40}, r"n_attn_layers is 1099511627776"),
    ({"sae_diff_type": "nullify"}, r"sae_diff_type is nullify: this is not read; these are: topk, relu"),
    ({"kval_topk": 13}, r"kval_topk is 13: it has 12 features"),
    ({"kval_topk": None}, r"has no 'kval_topk'"),
    ({"n_heads": 5}, r"n_heads is 5: the 12 features can't be shared out"),
    ({"scaling_factor": 0}, r"multiplied by 0.0; a number above 0"),
    ({"exp_factor": 1e30}, r"exp_factor is 1e\+30: expected how many times"),
    ({"tied_weights": False}, r"has no tensor 'E'"),
    ({"bottleneck_factor": 3}, r"'attn_layers.0.k_ctx.weight' has shape \[6, 12\]"),
    ({"sae_diff_type": "batchtopk"}, r"has no tensor 'expected_min_act'"),
]


@pytest.mark.parametrize(("sae", "message"), WRONG)
def test_what_does_not_fit_together_is_named(tmp_path: Path, sae: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_dictionary(str(checkpoint(tmp_path / "layer_1", tensors(), **sae)))


def test_an_encoder_beside_a_tied_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds an encoder, E"):
        find_dictionary(str(checkpoint(tmp_path / "a", tensors(tied=False), tied_weights=True)))
    place = checkpoint(tmp_path / "b", tensors())
    assert find_dictionary(str(place)).site is None, "no folder tells the layer"


def test_a_meta_sae_reads_what_its_parent_reads(tmp_path: Path) -> None:
    """Its codes are the parent's times those of the parent's decoder rows."""
    t = tensors()
    checkpoint(tmp_path / "layer_4", t)
    own = test_native.meta(tmp_path / "meta", "../layer_4", d=D, parent_rows="stored")
    x_BTD = rows_of([6, 3])
    codes, _ = through(opened(tmp_path / "meta"), x_BTD, [6, 3])
    of_parent = np.concatenate([reference(t, x_BTD[row, :length], 3)[0] for row, length in ((0, 6), (1, 3))])
    score = np.maximum(exact(t)["D"] / SCALE @ own["encoder"], 0)
    expected = of_parent @ (score * largest(score, 2))
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-5 * expected.max())


# --- through the line ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """A rotated basis and its opposite, long enough that D transposed / (4 D_in) times D is the identity, with
    attention that predicts a good part of a vector."""
    t = tensors(d_in=D_MODEL, width=2 * D_MODEL, seed=1)
    basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(D_MODEL, D_MODEL)))
    t["D"] = (2 * D_MODEL**0.5 * np.concatenate([basis, -basis])).astype(np.float32)
    t["b"] = 0.01 * t["b"]
    for name in t:
        if name.endswith("weight"):
            t[name] /= np.sqrt(t[name].shape[1])
    folder = tmp_path_factory.mktemp("fits") / "layer_1" / "temporal"
    return checkpoint(folder, t, kval_topk=24), t


def by_hand(made: Tiny, run: Run, t: dict[str, Array]) -> Array:
    """Codes of every token of the run's rows, row by row."""
    x, _ = states(made, run, "model.layers.1", "output")
    pieces = np.split(x.numpy(), np.cumsum(RowStore.of(run.rows(), bos=True).length)[:-1])
    return np.concatenate([reference(t, piece, 24)[0] for piece in pieces])


PUSHED = {
    "n_shown": 2,
    "n_select": 2,
    "n_heldout": 2,
    "minimum": 1,
    "shortest": 2,
    "targets": [0.33],
    "always": True,
}
SMALL = {"n_tokens": 12_000, "shard_tokens": 4_096, "context_length": CONTEXT}


def test_through_the_whole_line(made: Tiny, fitting: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    """Densities are those of the reference on states captured by hand; the check adds the prediction; probing texts
    and pushing features go through."""
    place, t = fitting
    run = pipeline.explain(
        made.recipe(
            dictionaries={"auto": {"path": str(place)}}, cache=SMALL, features={"n": 8},
            sampling={"minimum": 5, "minimum_full": 10}, intervention=PUSHED,
            scorers={"detection": {"use": "detection"}, "sensitivity": {"use": "sensitivity"}},
        ),
        out=tmp_path / "run",
    )  # fmt: skip
    assert list(run.recipe.dictionaries) == ["layers.1"]
    codes = by_hand(made, run, t)
    looked_at = np.concatenate([np.arange(n) >= 1 for n in RowStore.of(run.rows(), bos=True).length.tolist()])
    share = (codes[looked_at] > 0).mean(0)
    found = density(run)
    assert len(found) == 8
    for name, value in found.items():
        assert value == pytest.approx(share[int(name.rpartition("/")[2])], abs=3 / looked_at.sum()), name
    (check,) = (record for record in run.cache("layers.1").records() if record["key"] == "check")
    x, _ = states(made, run, "model.layers.1", "output")
    x, at = x.numpy().astype(np.float64), np.flatnonzero(looked_at)[: check["n_tokens"]]
    pieces = np.split(x, np.cumsum(RowStore.of(run.rows(), bos=True).length)[:-1])
    x_hat = np.concatenate([reference(t, piece, 24)[1] for piece in pieces])
    fvu = ((x - x_hat)[at] ** 2).sum() / ((x[at] - x[at].mean(0)) ** 2).sum()
    assert check["fvu"] == pytest.approx(fvu, rel=1e-4) and check["l0"] == pytest.approx(24, abs=0.01)
    scores = run.scores().to_pydict()
    ok = [scorer for scorer, status in zip(scores["scorer"], scores["status"], strict=True) if status == "ok"]
    assert {"detection", "sensitivity"} <= set(ok)
    pushed = [record["status"] for record in run.intervene("layers.1").records()]
    assert pushed.count("ok") >= 4


def test_from_stored_activations(made: Tiny, fitting: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    """The rows of a run, stored with their lengths, give what the model gives."""
    place, _ = fitting
    sections: dict[str, Any] = {
        "dictionaries": {"auto": {"path": str(place)}}, "features": {"n": 24},
        "sampling": {"minimum": 5, "minimum_full": 10}, "scorers": {"detection": {"use": "detection"}},
    }  # fmt: skip
    first = pipeline.explain(made.recipe(cache=SMALL, **sections), out=tmp_path / "model")
    rows = RowStore.of(first.rows(), bos=True)
    x, _ = states(made, first, "model.layers.1", "output")
    lengths = rows.length.astype(np.int64)
    tokens = [rows.tokens(np.array([at]), np.array([0]), int(n))[0] for at, n in enumerate(lengths)]
    folder = tmp_path / "stored"
    folder.mkdir()
    arrays = {
        "activations": x, "lengths": torch.tensor(lengths),
        "tokens": torch.tensor(np.concatenate(tokens).astype(np.int64)),
    }  # fmt: skip
    save_file(arrays, folder / "a.safetensors")
    recipe = made.recipe(activations={"path": str(folder)}, cache={"n_tokens": 10**9}, **sections)
    del recipe["corpus"]
    second = pipeline.explain(recipe, out=tmp_path / "files")
    one, other = density(first), density(second)
    assert one.keys() == other.keys() and len(one) == 24
    for name, value in one.items():
        assert other[name] == pytest.approx(value, abs=3 / x.shape[0]), name
    assert max(lengths) == CONTEXT


def test_inspect_and_check_say_what_it_is(
    made: Tiny, fitting: tuple[Path, dict[str, Array]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = fitting
    monkeypatch.setenv("COLUMNS", "250")
    shown = CliRunner().invoke(app, ["sae", "inspect", str(place)])
    assert shown.exit_code == 0 and "attention over the tokens before" in shown.output
    words = ["sae", "check", str(place), "--model", str(made.model), "--corpus", str(made.corpus)]
    done = CliRunner().invoke(app, [*words, "--n-tokens", "1000"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "nothing predicted by the" in " ".join(done.output.split())
    assert "would fit better" not in done.output


def test_ablating_is_refused(made: Tiny, fitting: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    recipe = made.recipe(
        dictionaries={"auto": {"path": str(fitting[0])}}, intervention={"ablate": True, "always": True}
    )  # fmt: skip
    with pytest.raises(RecipeError, match="depends on the tokens before it"):
        pipeline.explain(recipe, out=tmp_path / "run")


def test_what_a_dictionary_of_somebodys_own_predicts_is_subtracted(tmp_path: Path) -> None:
    """Each vector is predicted to be the one before it: codes are of the differences, 1 1 2 of 1 2 4."""
    encoder = opened(checkpoint(tmp_path / "layer_1", tensors()))
    eye = torch.eye(D)
    weights = dataclasses.replace(
        reader_of(encoder.spec).load(encoder.spec, "cpu"), w_enc_DF=eye, b_enc_F=torch.zeros(D),
        b_pre_D=torch.zeros(D), b_dec_O=torch.zeros(D), w_dec_FO=eye,
        predict=lambda x_TD: torch.cat([torch.zeros_like(x_TD[:1]), x_TD[:-1]]),
    )  # fmt: skip
    spec = dataclasses.replace(encoder.spec, selector="relu", k=None, width=D)
    x = torch.tensor([1.0, 2.0, 4.0])[:, None].expand(3, D).numpy()[None]
    codes, x_hat = through(Encoder(spec, weights), x, [3])
    assert codes[:, 0].tolist() == [1, 1, 2] and x_hat[:, 0].tolist() == [1, 2, 4]
