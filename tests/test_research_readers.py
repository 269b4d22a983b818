"""Readers of research code (ITDA, top-AFA, Kissane's, crosscoders): codes as that code computes them, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dense_codes import (
    Array,
    D,
    F,
    N,
    assert_parity,
    exact,
    inputs,
    save_json,
    save_torch,
    tensors,
)
from safetensors.torch import save_file

from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError
from autointerp.recipe import over_default_plugins, parse
from autointerp.report.dictionary import inspected
from autointerp.resolve import resolve
from autointerp.types import Json, Site
from tiny import Tiny

FOUR = {name: value for name, value in tensors().items() if name != "threshold"}


def check_directions(path: Path, rows: Array) -> None:
    """And that `sae inspect` has its say."""
    spec = find_dictionary(str(path))
    weights = reader_of(spec).load(spec, "cpu")
    np.testing.assert_array_equal(weights.directions([3, 0]).numpy(), rows[[3, 0]])
    assert dict(inspected(str(path)))["format"] == spec.format


# --- ITDA ------------------------------------------------------------------------------------------------

METADATA: dict[str, Any] = {
    "layer": 4,
    "lm_name": "EleutherAI/pythia-70m-deduped",
    "k": 3,
    "dataset": "org/text",
    "seq_len": 128,
    "submodule_name": None,
    "activation_dim": D,
    "loss_threshold": 0.1,
}


def atoms() -> Array:
    rows = tensors()["W_dec"]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def itda(folder: Path, metadata: dict[str, Any] | None = None, indices: Array | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.yaml").write_text(yaml.safe_dump(METADATA if metadata is None else metadata))
    torch.save(torch.tensor(atoms()), folder / "atoms.pt")
    given = np.arange(2 * F).reshape(F, 2) if indices is None else indices
    torch.save(torch.tensor(given), folder / "atom_indices.pt")
    return folder


def slow_itda(x: Array, k: int) -> Array:
    """As train.py's mp_encode, token by token."""
    rows, codes = atoms().astype(np.float64), np.zeros((len(x), F))
    for token, left in enumerate(x.astype(np.float64)):
        for _ in range(k):
            products = rows @ left
            best = int(np.abs(products).argmax())
            codes[token, best] += products[best]
            left = left - products[best] * rows[best]
    return codes


@pytest.mark.parametrize("name", ["", "atoms.pt"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_itda(tmp_path: Path, k: int, name: str) -> None:
    path, x = itda(tmp_path / "run", METADATA | {"k": k}) / name, inputs()
    spec, expected = find_dictionary(str(path)), slow_itda(x, k)
    encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"))
    codes = encoder.encode(torch.tensor(x))
    found = np.zeros((N, F, 2))
    found[codes.token_M, codes.feature_M // 2, codes.feature_M % 2] = codes.value_M
    assert (expected < 0).any() and (expected > 0).any()
    np.testing.assert_allclose(found[:, :, 0] - found[:, :, 1], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        encoder.decode(codes, torch.tensor(x)), expected @ atoms(), rtol=1e-4, atol=1e-4
    )
    check_directions(path, atoms())


def test_what_itda_says_of_itself(tmp_path: Path) -> None:
    spec = find_dictionary(str(itda(tmp_path)))
    assert (spec.format, spec.selector, spec.k, spec.signed) == ("itda", "pursuit", 3, True)
    assert (spec.site, spec.model) == (Site("resid_post", 4), "EleutherAI/pythia-70m-deduped")
    assert (spec.corpus, spec.context_length, spec.model_was_centred) == ("org/text", 128, True)
    assert spec.centring_is_default
    assert any("atom_indices.pt" in note and "training token" in note for note in spec.notes)
    own = METADATA | {"submodule_name": "model.layers.4.mlp", "center_writing_weights": False}
    other = find_dictionary(str(itda(tmp_path / "other", own)))
    assert other.site is None and not other.model_was_centred


def test_inspect_says_in_words_how_codes_are_found(tmp_path: Path) -> None:
    said = dict(inspected(str(itda(tmp_path / "a"))))
    assert said["selector"] == "pursuit: 3 steps, by the largest product in magnitude"
    save_json(tmp_path / "b" / "config.json", AFA)
    save_torch(tmp_path / "b" / "sae.pt", WEAK)
    said = dict(inspected(str(tmp_path / "b")))
    assert "as many as match the norm" in said["selector"]
    assert "activations are pre-activations" in said["scores"]
    said = dict(inspected(str(crosscoder(tmp_path / "c")[0])))
    assert said["model"] == "2 models, whose vectors must come from files: --activations FOLDER"


def test_itda_files_gone_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no 'k'"):
        find_dictionary(str(itda(tmp_path / "a", {k: v for k, v in METADATA.items() if k != "k"})))
    with pytest.raises(
        CheckpointError, match=r"k is 1000000000000: of 10 features in 6 dimensions .* 10 steps"
    ):
        find_dictionary(str(itda(tmp_path / "e", METADATA | {"k": 10**12})))
    with pytest.raises(CheckpointError, match=r"atom_indices.pt has shape \[4, 2\], but .* 10 atoms"):
        find_dictionary(str(itda(tmp_path / "b", indices=np.zeros((4, 2), int))))
    torch.save({"atoms": torch.tensor(atoms())}, itda(tmp_path / "c") / "atoms.pt")
    with pytest.raises(CheckpointError, match=r"one tensor \[atoms, d_in\] and nothing else"):
        find_dictionary(str(tmp_path / "c"))
    torch.save(torch.zeros(F, D, dtype=torch.int64), itda(tmp_path / "d") / "atoms.pt")
    with pytest.raises(CheckpointError, match="dtype I64"):
        find_dictionary(str(tmp_path / "d"))


# --- top-AFA ---------------------------------------------------------------------------------------------

AFA: dict[str, Any] = {
    "act_size": D,
    "dict_size": F,
    "sae_type": "topafa",
    "top_k": 0,
    "input_unit_norm": True,
    "hook_point": "blocks.7.hook_resid_pre",
    "model_name": "gpt2-small",
    "dataset_path": "Skylion007/openwebtext",
    "seq_len": 128,
}


WEAK = FOUR | {"W_enc": FOUR["W_enc"] / 4}
"""Of whose features it takes several to match an input's norm."""


def slow_afa(x: Array, normalised: bool) -> tuple[Array, Array]:
    """As training/sae.py's TopAFASAE, token by token; codes and reconstruction."""
    t, x = exact(WEAK), x.astype(np.float64)
    lengths, codes, x_hat = np.linalg.norm(t["W_dec"], axis=1), np.zeros((len(x), F)), np.zeros_like(x)
    for token, one in enumerate(x):
        mean, std = (one.mean(), one.std(ddof=1)) if normalised else (0.0, 1.0)
        centred = (one - mean) / (std + 1e-5 * normalised) - t["b_dec"]
        acts = np.maximum(centred @ t["W_enc"], 0)
        order = np.argsort(-(acts * lengths))
        sums = np.sqrt(np.cumsum((acts * lengths)[order] ** 2))
        kept = order[: int(np.abs(sums - np.linalg.norm(centred)).argmin()) + 1]
        codes[token, kept] = acts[kept]
        x_hat[token] = (codes[token] @ t["W_dec"] + t["b_dec"]) * std + mean
    return codes, x_hat


@pytest.mark.parametrize("normalised", [True, False])
def test_top_afa(tmp_path: Path, normalised: bool) -> None:
    save_json(tmp_path / "config.json", AFA | {"input_unit_norm": normalised})
    save_torch(tmp_path / "sae.pt", WEAK)
    x = inputs()
    expected, x_hat = slow_afa(x, normalised)
    assert len(set((expected > 0).sum(1).tolist())) > 2, "a k that is the same for all tokens tests nothing"
    spec = assert_parity(tmp_path, x, expected, x_hat)
    assert (spec.format, spec.selector, spec.site) == ("afa", "top_afa", Site("resid_pre", 7))
    assert (spec.model, spec.model_was_centred) == ("gpt2", not normalised)
    assert spec.centring_is_default == spec.model_was_centred
    check_directions(tmp_path, WEAK["W_dec"])


def test_other_kinds_of_that_trainer_are_batch_topks(tmp_path: Path) -> None:
    save_json(tmp_path / "config.json", AFA | {"sae_type": "topk", "top_k": 3})
    save_torch(tmp_path / "sae.pt", WEAK)
    assert find_dictionary(str(tmp_path)).format == "batch_topk"


def test_top_afa_of_other_sizes_is_refused(tmp_path: Path) -> None:
    save_json(tmp_path / "config.json", AFA | {"dict_size": F + 1})
    save_torch(tmp_path / "sae.pt", WEAK)
    with pytest.raises(CheckpointError, match="'b_enc' has shape"):
        find_dictionary(str(tmp_path))


# --- Kissane ---------------------------------------------------------------------------------------------

ATTENTION: dict[str, Any] = {
    "act_name": "blocks.5.attn.hook_z",
    "act_size": D,
    "dict_size": F,
    "model_name": "gpt2-small",
    "head": "cat",
    "seq_len": 128,
    "layer": 5,
    "site": "z",
}
CROSSCODER: dict[str, Any] = {
    "d_in": D,
    "dict_size": F,
    "model_name": "gemma-2-2b",
    "hook_point": "blocks.14.hook_resid_pre",
    "seq_len": 1024,
}


def attention(folder: Path, **config: Any) -> Path:
    save_json(folder / "gpt2-small_L5_v9_cfg.json", ATTENTION | config)
    return save_torch(folder / "gpt2-small_L5_v9.pt", FOUR)


@pytest.mark.parametrize("by_folder", [True, False])
def test_kissanes_attention_dictionaries(tmp_path: Path, by_folder: bool) -> None:
    path, x, t = attention(tmp_path), inputs(), exact(FOUR)
    acts = np.maximum((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    place = tmp_path if by_folder else path
    spec = assert_parity(place, x, acts, acts @ t["W_dec"] + t["b_dec"])
    assert (spec.format, spec.site, spec.model) == ("kissane", Site("z", 5), "gpt2")
    assert spec.without_value_bias and spec.approximation is None
    assert any("b_O" in note for note in spec.notes)
    check_directions(place, FOUR["W_dec"])


def test_kissanes_dictionaries_elsewhere_leave_nothing_out(tmp_path: Path) -> None:
    spec = find_dictionary(str(attention(tmp_path, act_name="blocks.5.hook_mlp_out")))
    assert (spec.site, spec.without_value_bias, spec.model_was_centred) == (Site("mlp_out", 5), False, True)


def test_kissanes_dictionaries_of_one_head_or_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="head is 3: dictionaries of a single attention head"):
        find_dictionary(str(attention(tmp_path / "a", head=3)))
    with pytest.raises(CheckpointError, match="'b_dec' has shape"):
        find_dictionary(str(attention(tmp_path / "b", act_size=D + 1)))


def crosscoder(folder: Path, **config: Any) -> tuple[Path, dict[str, Array]]:
    rng = np.random.default_rng(4)
    shapes = {"W_enc": (2, D, F), "b_enc": (F,), "W_dec": (F, 2, D), "b_dec": (2, D)}
    t: dict[str, Array] = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_json(folder / "cfg.json", CROSSCODER | config)
    save_torch(folder / "cc_weights.pt", t)
    return folder, t


@pytest.mark.parametrize("name", ["", "cc_weights.pt"])
def test_kissanes_crosscoder(tmp_path: Path, name: str) -> None:
    """Of both models' vectors one behind the other: sum over models of x_m W_enc[m], and both reconstructions."""
    folder, t = crosscoder(tmp_path)
    x, wide = np.concatenate([inputs(), 2 * inputs()[::-1]], axis=1), exact(t)
    both = x.reshape(N, 2, D).astype(np.float64)
    acts = np.maximum(np.einsum("nmd,mdf->nf", both, wide["W_enc"]) + wide["b_enc"], 0)
    x_hat = np.einsum("nf,fmd->nmd", acts, wide["W_dec"]) + wide["b_dec"]
    spec = assert_parity(folder / name, x, acts, x_hat.reshape(N, 2 * D))
    assert (spec.n_models, spec.d_in, spec.site) == (2, 2 * D, Site("resid_pre", 14))
    check_directions(folder / name, t["W_dec"].reshape(F, 2 * D))


def test_a_crosscoder_of_other_sizes_is_refused(tmp_path: Path) -> None:
    folder, _ = crosscoder(tmp_path, d_in=D + 1)
    with pytest.raises(CheckpointError, match=r"'b_dec' has shape \[2, 6\], but .* \[models 2, d_in 7\]"):
        find_dictionary(str(folder))


def test_a_run_with_a_model_refuses_a_crosscoder_of_two(made: Tiny, tmp_path: Path) -> None:
    folder, _ = crosscoder(tmp_path / "cc", hook_point="blocks.1.hook_resid_post")
    recipe = made.recipe(dictionaries={"auto": {"path": str(folder)}})
    with pytest.raises(CheckpointError, match=r"crosscoder of 2 models, and a run has one.*--activations"):
        resolve(parse(over_default_plugins(recipe)))


def test_stored_vectors_of_both_models_are_read(made: Tiny, tmp_path: Path) -> None:
    """The way out that the refusal names."""
    folder, _ = crosscoder(tmp_path / "cc", hook_point="blocks.1.hook_resid_post")
    (tmp_path / "dump").mkdir()
    vectors = torch.randn(4, 32, 2 * D, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(1, 300, (4, 32), generator=torch.Generator().manual_seed(1))
    save_file({"activations": vectors, "tokens": tokens}, tmp_path / "dump" / "a.safetensors")
    recipe: Json = {
        "dictionaries": {"auto": {"path": str(folder)}},
        "activations": {"path": str(tmp_path / "dump"), "tokenizer": str(made.model)},
        "cache": {"n_tokens": 128},
        "llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}},
    }
    found = resolve(parse(over_default_plugins(recipe))).dictionaries
    assert [(one.place, one.spec.d_in) for one in found.values()] == [("layers.1", 2 * D)]


# --- crosscoders of dictionary_learning's fork -----------------------------------------------------------

L = 2


def forks(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {
        "encoder.weight": (L, D, F),
        "encoder.bias": (F,),
        "decoder.weight": (L, F, D),
        "decoder.bias": (L, D),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def normaliser() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "activation_mean": rng.normal(size=(L, D)).astype(np.float32),
        "activation_std": rng.uniform(1, 2, size=(L, D)).astype(np.float32),
        "activation_global_scale": np.array([0.4, 0.9], np.float32),
        "target_rms": np.array(1.0, np.float32),
    }


UNNORMALISED: dict[str, Any] = {
    "activation_mean": np.full((L, D), np.nan, np.float32),
    "activation_std": np.full((L, D), np.nan, np.float32),
    "activation_global_scale": np.ones(L, np.float32),
    "target_rms": np.array(1.0, np.float32),
}


def slow_crosscoder(x: Array, t: dict[str, Any], config: dict[str, Any]) -> tuple[Array, Array]:
    """As dictionary.py's encode and decode; codes and reconstruction [N, L * D]."""
    wide = {name: value.astype(np.float64) for name, value in t.items()}
    both, mean, scale = x.reshape(N, L, D).astype(np.float64), np.zeros((L, D)), np.ones(L)
    normalises = "activation_mean" in wide and not np.isnan(wide["activation_mean"]).any()
    if normalises:
        mean, scale = wide["activation_mean"], wide["activation_global_scale"]
    both = (both - mean) * scale[:, None]
    acts = np.maximum(np.einsum("nld,ldf->nf", both, wide["encoder.weight"]) + wide["encoder.bias"], 0)
    if "threshold" in wide:
        rows = wide["decoder.weight"]
        whole, summed = np.sqrt((rows**2).sum(axis=(0, 2))), np.sqrt((rows**2).sum(axis=2)).sum(axis=0)
        weights = (
            config.get("code_normalization_alpha_sae", 1.0),
            config.get("code_normalization_alpha_cc", 0.1),
        )
        norm = {
            1: summed, 2: whole, 3: weights[0] * whole + weights[1] * summed, 4: np.ones(F)
        }[int(wide.get("code_normalization_id", np.array(1)))]  # fmt: skip
        acts = acts * (acts * norm > wide["threshold"])
    x_hat = np.einsum("nf,lfd->nld", acts, wide["decoder.weight"]) + wide["decoder.bias"]
    if normalises:
        x_hat = x_hat / (scale[:, None] + 1e-8) + mean
    return acts, x_hat.reshape(N, L * D)


def joined_inputs() -> Array:
    return np.concatenate([inputs(), 2 * inputs()[::-1]], axis=1)


def save_fork(folder: Path, t: dict[str, Any], name: str = "model.safetensors", **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "config.json", {"activation_dim": D, "dict_size": F, "num_layers": L} | config)
    if name.endswith(".pt"):
        return save_torch(folder / name, t)
    save_file({key: torch.tensor(value) for key, value in t.items()}, folder / name)
    return folder


@pytest.mark.parametrize("extra", [{}, UNNORMALISED, normaliser()], ids=["old", "nan", "normalised"])
@pytest.mark.parametrize("name", ["model.safetensors", "ae_final.pt"])
def test_plain_crosscoders(tmp_path: Path, name: str, extra: dict[str, Any]) -> None:
    t = forks() | extra | {"code_normalization_id": np.array(1)}
    path = save_fork(tmp_path, t, name)
    spec = assert_parity(path, joined_inputs(), *slow_crosscoder(joined_inputs(), t, {}))
    assert (spec.format, spec.selector, spec.d_in, spec.site) == ("crosscoder", "relu", L * D, None)
    assert any("layers.3+layers.5" in note for note in spec.notes)


@pytest.mark.parametrize("kind", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [-1.0, 6.0])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_batch_top_k_crosscoders(tmp_path: Path, kind: int | None, threshold: float, prefix: str) -> None:
    t = forks() | normaliser() | {"threshold": np.array(threshold, np.float32), "k": np.array(4, np.int32)}
    t |= {} if kind is None else {"code_normalization_id": np.array(kind)}
    config = {"k": 4, "code_normalization_alpha_cc": 0.3}
    path = save_fork(tmp_path, {prefix + name: value for name, value in t.items()}, **config)
    acts, x_hat = slow_crosscoder(joined_inputs(), t, config)
    spec = assert_parity(path, joined_inputs(), acts, x_hat)
    assert (spec.selector, spec.expected.l0) == ("jumprelu", 4)


def test_a_crosscoders_directions_are_both_inputs_rows(tmp_path: Path) -> None:
    t = forks()
    check_directions(save_fork(tmp_path, t), np.concatenate(list(t["decoder.weight"]), axis=1))


def test_crosscoders_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"encoder_layers is .*fewer inputs"):
        find_dictionary(str(save_fork(tmp_path / "b", forks(), encoder_layers=[1])))
    fewer = forks() | {"decoder.weight": forks()["decoder.weight"][:1]}
    with pytest.raises(CheckpointError, match=r"'decoder\.weight' has shape"):
        find_dictionary(str(save_fork(tmp_path / "c", fewer)))
    for kind, shown in ((9, r"\[9\]"), (np.nan, r"\[NaN\]"), ([1, 1], r"\[1, 1\]")):
        strange = forks() | {"threshold": np.array(1.0, np.float32), "code_normalization_id": np.array(kind)}
        spec = find_dictionary(str(save_fork(tmp_path / "d", strange)))
        with pytest.raises(CheckpointError, match=f"code_normalization_id is {shown}"):
            reader_of(spec).load(spec, "cpu")
    empty = forks() | {"encoder.weight": np.zeros((0, D, F), np.float32)}
    with pytest.raises(CheckpointError, match=r"\[0, 6, 10\], so that nothing"):
        find_dictionary(str(save_fork(tmp_path / "g", empty)))
    imaginary = forks() | normaliser() | {"activation_mean": np.ones((L, D), np.complex64)}
    spec = find_dictionary(str(save_fork(tmp_path / "f", imaginary)))
    with pytest.raises(CheckpointError, match="real numbers"):
        reader_of(spec).load(spec, "cpu")
    shrunk = forks() | normaliser() | {"activation_global_scale": np.array([0, 1], np.float32)}
    spec = find_dictionary(str(save_fork(tmp_path / "e", shrunk)))
    with pytest.raises(CheckpointError, match="a factor above 0"):
        reader_of(spec).load(spec, "cpu")
