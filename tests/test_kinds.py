"""Every kind of dictionary through the whole line: signed ones, transcoders, raw neurons, a user's function."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.activations.firing_store import FiringStore, firing_shards
from autointerp.activations.rows import RowStore
from autointerp.cli import app
from autointerp.errors import CheckpointError, FeatureError, SiteError
from autointerp.run import Run
from tiny import CONTEXT, D_MODEL, Tiny

MINE = '''
    from dataclasses import replace
    from pathlib import Path

    import torch

    from autointerp.dictionaries.spec import Dictionary, DictionarySpec, Weights
    from autointerp.types import Site

    D = 104


    def _basis(d):
        return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1)))[0]


    def _base(width):
        return DictionarySpec(
            format="", path=Path(), identity="mine", d_in=D, width=width, selector="abstopk", k=12,
            hook=None, site=Site("resid_post", 1), model=None, corpus=None, context_length=64, prepend_bos=True,
        )


    def signed():
        """An orthogonal basis with signs: each axis has two poles."""
        zero, axes = torch.zeros(D), _basis(D)
        return Dictionary(_base(D), lambda device: Weights(axes.T, zero, zero, axes, zero))


    def custom():
        """The same by a function of its own: the positive pole of the strongest axis alone."""
        zero, axes = torch.zeros(D), _basis(D)

        def encode(x_nD):
            return (x_nD @ axes.T).clamp_min(0).topk(12, dim=1)

        spec = replace(_base(D), selector="custom", k=None)
        return Dictionary(spec, lambda device: Weights(None, zero, zero, axes, zero, encode=encode))


    def transcoder():
        """From the MLP's input to its output, as far as the test fitted it."""
        zero, axes = torch.zeros(D), _basis(D)
        w_dec, b_dec = torch.load(Path(__file__).with_name("decoder.pt"))
        spec = replace(
            _base(D), selector="topk", site=Site("mlp_in", 1), is_transcoder=True, d_out=D,
            hook_out="layers.1.mlp",
        )
        return Dictionary(spec, lambda device: Weights(axes.T, zero, zero, w_dec, b_dec))


    def crosscoder():
        """Both of two layers' streams from one set of codes."""
        zero, axes = torch.zeros(D), _basis(D)
        both = torch.cat([axes.T, axes.T]) / 2
        spec = replace(
            _base(D), d_in=2 * D, k=30, site=Site("resid_post", 0), further_sites=(Site("resid_post", 1),)
        )
        decoder = torch.cat([axes, axes], dim=1)
        return Dictionary(
            spec, lambda device: Weights(both, zero, torch.zeros(2 * D), decoder, torch.zeros(2 * D))
        )


    def nothing():
        return 3
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_saes.py").write_text(textwrap.dedent(MINE))
    monkeypatch.delitem(sys.modules, "my_saes", raising=False)  # another test's
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def explained(made: Tiny, sae: str, out: Path, hook: str | None = None, **sections: object) -> Run:
    section = {"path": sae} if hook is None else {"path": sae, "hook": hook}
    return pipeline.explain(made.recipe(dictionaries={"auto": section}, **sections), out=out)


def states(made: Tiny, run: Run, module: str, side: str) -> tuple[torch.Tensor, np.ndarray]:
    """What a module of the model reads or gives on the run's rows, and which tokens were looked at."""
    rows = RowStore.of(run.rows(), bos=True)
    model = AutoModelForCausalLM.from_pretrained(made.model)
    seen: list[torch.Tensor] = []

    def keep(module: object, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.append(arguments[0] if side == "input" else output)

    model.get_submodule(module).register_forward_hook(keep)
    with torch.inference_mode():
        for at in range(len(rows.length)):
            n = int(rows.length[at])
            ids = torch.from_numpy(rows.tokens(np.array([at]), np.array([0]), n).astype(np.int64))
            model(ids)
    return torch.cat([one[0] for one in seen]), np.concatenate(
        [np.arange(n) >= 1 for n in rows.length.tolist()]
    )


def density(run: Run) -> dict[str, float]:
    table = run.features().to_pydict()
    return dict(zip(table["feature"], table["density"], strict=True))


def test_each_pole_of_a_signed_dictionary_is_a_feature(made: Tiny, mine: Path, tmp_path: Path) -> None:
    run = explained(made, "my_saes:signed", tmp_path / "run", features={"ids": ["3", "layers.1/7-", "9-10"]})
    table = run.features().to_pydict()
    asked = ["3", "3-", "7-", "9", "9-", "10", "10-"]
    assert sorted(table["feature"]) == sorted(f"layers.1/{name}" for name in asked)
    assert dict(zip(table["feature"], table["pole"], strict=True))["layers.1/7-"] == "-"
    x, looked_at = states(made, run, "model.layers.1", "output")
    axes = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)))[0]
    pre = x @ axes.T
    kept = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.abs().topk(12, dim=1).indices, True)
    kept &= torch.from_numpy(looked_at)[:, None]
    found = density(run)
    n = int(looked_at.sum())
    for name in asked:
        index, sign = int(name.rstrip("-")), -1 if name.endswith("-") else 1
        expected = int((kept[:, index] & (sign * pre[:, index] > 0)).sum()) / n
        assert found[f"layers.1/{name}"] == pytest.approx(expected, abs=2 / n), name
    scores = run.scores().to_pydict()
    assert {"layers.1/3", "layers.1/3-"} <= set(scores["feature"]) and set(scores["status"]) == {"ok"}
    promoted = dict(zip(table["feature"], table["promoted"], strict=True))
    suppressed = dict(zip(table["feature"], table["suppressed"], strict=True))
    assert promoted["layers.1/3"] == suppressed["layers.1/3-"] and promoted["layers.1/3"]
    shown = CliRunner().invoke(app, ["show", str(run.path), "3-"])
    assert shown.exit_code == 0 and "layers.1/3-" in shown.output
    drawn = explained(made, "my_saes:signed", tmp_path / "drawn", features={"n": 30})
    assert len(drawn.features()) == 30 and {"", "-"} == set(drawn.features().to_pydict()["pole"])


def test_only_signed_dictionaries_have_poles(made: Tiny, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="have no signs"):
        pipeline.explain(made.recipe(features={"ids": ["layers.1/3-"]}), out=tmp_path / "run")


def test_a_custom_encoder(made: Tiny, mine: Path, tmp_path: Path) -> None:
    run = explained(made, "my_saes:custom", tmp_path / "run", features={"first": 12})
    x, looked_at = states(made, run, "model.layers.1", "output")
    axes = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)))[0]
    values, features = (x @ axes.T).clamp_min(0).topk(12, dim=1)
    fires = torch.zeros(len(x), D_MODEL).scatter(1, features, values) > 0
    n = int(looked_at.sum())
    expected = fires[torch.from_numpy(looked_at)].sum(0) / n
    for name, share in density(run).items():
        assert share == pytest.approx(float(expected[int(name.rpartition("/")[2])]), abs=2 / n)


def test_a_transcoder_is_checked_against_what_it_predicts(made: Tiny, mine: Path, tmp_path: Path) -> None:
    """On the MLP's input, its density is that of the top 12 there; the check is about the MLP's output."""
    axes = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)))[0]

    def codes_of(x: torch.Tensor) -> torch.Tensor:
        values, features = (x @ axes.T).topk(12, dim=1)
        return torch.zeros(len(x), D_MODEL).scatter(1, features, values.clamp_min(0))

    model = AutoModelForCausalLM.from_pretrained(made.model)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.register_forward_hook(lambda _, given, output: pairs.append((given[0][0], output[0])))
    with torch.inference_mode():
        model(torch.randint(1, 300, (1, 250), generator=torch.Generator().manual_seed(2)))
    x, y = pairs[0]
    centred = y - y.mean(0)
    w_dec = 0.1 * codes_of(x).T @ centred / codes_of(x).square().sum(0).clamp_min(1)[:, None]
    torch.save((w_dec, y.mean(0)), mine / "decoder.pt")
    run = explained(made, "my_saes:transcoder", tmp_path / "run", features={"first": 6})
    assert list(run.recipe.dictionaries) == ["layers.1.mlp_in"]
    (check,) = (record for record in run.cache("layers.1.mlp_in").records() if record["key"] == "check")
    x, _ = states(made, run, "model.layers.1.mlp", "input")
    y, looked_at = states(made, run, "model.layers.1.mlp", "output")
    x, y = (
        x[torch.from_numpy(looked_at)][: check["n_tokens"]],
        y[torch.from_numpy(looked_at)][: check["n_tokens"]],
    )
    error = (y - codes_of(x) @ w_dec - pairs[0][1].mean(0)).double().square().sum()
    expected = float(error / (y - y.mean(0)).double().square().sum())
    assert check["fvu"] == pytest.approx(expected, rel=1e-4)


def test_raw_neurons_have_two_poles_and_the_largest_are_kept(made: Tiny, tmp_path: Path) -> None:
    run = explained(made, "neurons:20", tmp_path / "run", hook="layers.1.neurons", features={"n": 20})
    name = "layers.1.neurons"
    assert run.identities.widths == {name: 160} and run.identities.poles == {name: 2}
    x, looked_at = states(made, run, "model.layers.1.mlp.down_proj", "input")
    kept = torch.zeros_like(x, dtype=torch.bool).scatter(1, x.abs().topk(20, dim=1).indices, True)
    kept &= torch.from_numpy(looked_at)[:, None]
    counts = FiringStore(list(firing_shards(run.cache(name))), CONTEXT).counts(320)
    expected = torch.stack([kept & (x > 0), kept & (x < 0)], dim=2).flatten(1).sum(0)
    assert counts.sum() == pytest.approx(int(expected.sum()), abs=5)
    assert np.abs(counts - expected.numpy()).max() <= 2
    promoted = run.features().to_pydict()["promoted"]
    assert all(promoted), "a neuron's output weights write to the residual stream"


def test_neurons_elsewhere_and_functions_that_give_nothing_are_refused(
    made: Tiny, mine: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"keeps 161 of a token's neurons, .* has 160\. .* neurons:160"):
        explained(made, "neurons:161", tmp_path / "a", hook="layers.1.neurons")
    with pytest.raises(CheckpointError, match="'neurons:abc' names no basis: write neurons, neurons:200 or"):
        explained(made, "neurons:abc", tmp_path / "a", hook="layers.1.neurons")
    with pytest.raises(SiteError, match=r"has no neurons: say --hook layers\.1\.neurons"):
        explained(made, "neurons", tmp_path / "a", hook="layers.1")
    with pytest.raises(CheckpointError, match=r"which neurons\? .* --hook layers\.12\.neurons"):
        explained(made, "neurons", tmp_path / "b")
    with pytest.raises(CheckpointError, match="gives a int; it must give"):
        explained(made, "my_saes:nothing", tmp_path / "c")
    with pytest.raises(CheckpointError, match="has no attribute 'missing'"):
        explained(made, "my_saes:missing", tmp_path / "d")


def test_a_crosscoder_reads_two_layers(made: Tiny, mine: Path, tmp_path: Path) -> None:
    run = explained(made, "my_saes:crosscoder", tmp_path / "run", features={"first": 12})
    name = "layers.0-layers.1"
    assert list(run.recipe.dictionaries) == [name] and run.identities.sites == {name: "layers.0+layers.1"}
    x_0, looked_at = states(made, run, "model.layers.0", "output")
    x_1, _ = states(made, run, "model.layers.1", "output")
    axes = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)))[0]
    pre = (x_0 + x_1) @ axes.T / 2
    kept = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.abs().topk(30, dim=1).indices, True)
    kept &= torch.from_numpy(looked_at)[:, None]
    n = int(looked_at.sum())
    for feature, share in density(run).items():
        index, sign = int(feature.rpartition("/")[2].rstrip("-")), -1 if feature.endswith("-") else 1
        expected = int((kept[:, index] & (sign * pre[:, index] > 0)).sum()) / n
        assert share == pytest.approx(expected, abs=2 / n), feature
    (check,) = (record for record in run.cache(name).records() if record["key"] == "check")
    x = torch.cat([x_0, x_1], dim=1)[torch.from_numpy(looked_at)][: check["n_tokens"]]
    codes = torch.where(kept, pre, 0)[torch.from_numpy(looked_at)][: check["n_tokens"]]
    error = (x - codes @ torch.cat([axes, axes], dim=1)).double().square().sum()
    assert check["fvu"] == pytest.approx(float(error / (x - x.mean(0)).double().square().sum()), rel=1e-4)
    assert all(run.features().to_pydict()["promoted"])


def test_experts_are_features_and_their_density_is_their_load(made: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, num_local_experts=4, num_experts_per_tok=1,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made.model / name, tmp_path / "model")
    mixture = replace(made, model=tmp_path / "model")
    run = explained(mixture, "experts", tmp_path / "run", hook="layers.1.experts", features={"first": 4})
    rows = RowStore.of(run.rows(), bos=True)
    counts, n_tokens = torch.zeros(4), 0
    with torch.inference_mode():
        for at, n in enumerate(rows.length.tolist()):
            ids = torch.from_numpy(rows.tokens(np.array([at]), np.array([0]), n).astype(np.int64))
            logits = model(ids, output_router_logits=True).router_logits[1]
            counts += torch.bincount(logits[1:].argmax(1), minlength=4)
            n_tokens += n - 1
    found = density(run)
    assert sum(found.values()) == pytest.approx(1, abs=1e-9), "each token has one expert"
    for index in range(4):
        assert found[f"layers.1.experts/{index}"] == pytest.approx(
            float(counts[index]) / n_tokens, abs=3 / n_tokens
        )


def test_two_dictionaries_on_one_hook(made: Tiny, mine: Path, tmp_path: Path) -> None:
    """Each gives what it gives alone."""
    both = {"plain": {"path": str(made.sae)}, "signed": {"path": "my_saes:signed"}}
    run = pipeline.explain(made.recipe(dictionaries=both, features={"first": 6}), out=tmp_path / "both")
    alone = explained(made, str(made.sae), tmp_path / "alone", features={"first": 6})
    assert len(run.features()) == 12
    found, expected = density(run), density(alone)
    assert {key.partition("/")[2]: share for key, share in found.items() if key.startswith("plain/")} == {
        key.partition("/")[2]: share for key, share in expected.items()
    }


def itda(folder: Path, made: Tiny, rows: torch.Tensor) -> Path:
    folder.mkdir()
    torch.save(rows, folder / "atoms.pt")
    torch.save(torch.zeros(len(rows), 2, dtype=torch.int64), folder / "atom_indices.pt")
    settings = {"layer": 1, "lm_name": str(made.model), "k": 8, "seq_len": 64, "submodule_name": None}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_a_pursuit_in_the_line(made: Tiny, tmp_path: Path) -> None:
    """ITDA's codes, from a folder to scores; and `sae check` finds what the line finds."""
    rows = torch.nn.functional.normalize(
        torch.randn(150, D_MODEL, generator=torch.Generator().manual_seed(4)), dim=1
    )
    sae = itda(tmp_path / "itda", made, rows)
    run = explained(made, str(sae), tmp_path / "run", features={"ids": ["0-11"]})
    x, looked_at = states(made, run, "model.layers.1", "output")
    x = x[torch.from_numpy(looked_at)].double()
    code, left = torch.zeros(len(x), 150, dtype=torch.float64), x.clone()
    for _ in range(8):
        products = left @ rows.double().T
        best = products.abs().argmax(1, keepdim=True)
        value = products.gather(1, best)
        code.scatter_add_(1, best, value)
        left -= value * rows.double()[best[:, 0]]
    found = density(run)
    for name, share in found.items():
        index, sign = int(name.rpartition("/")[2].rstrip("-")), -1 if name.endswith("-") else 1
        assert share == pytest.approx(float((sign * code[:, index] > 0).double().mean()), abs=3 / len(x)), (
            name
        )
    assert len(found) >= 12 and any(share > 0 for share in found.values())
    (check,) = (record for record in run.cache("layers.1").records() if record["key"] == "check")
    first = slice(0, check["n_tokens"])
    spread = (x[first] - x[first].mean(0)).square().sum()
    assert check["fvu"] == pytest.approx(float(left[first].square().sum() / spread), rel=1e-3)
    words = ["sae", "check", str(sae), "--corpus", str(made.corpus), "--n-tokens", "3000"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "would fit better" not in done.output
