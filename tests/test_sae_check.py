"""`autointerp sae inspect` and `sae check`."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import delphi_files
import tiny_families
from autointerp import pipeline
from autointerp.activations.looked_at import Inputs
from autointerp.check import check_dictionaries
from autointerp.cli import app
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.spec import Expected
from autointerp.errors import ActivationsError
from autointerp.fits import Fit, LeftOut, density, verdicts
from autointerp.progress import Silent, Stop
from autointerp.report.dictionary import inspected
from autointerp.report.fits import print_fits
from autointerp.sources import DictionaryFound
from autointerp.stages.check import Convention, Reading, without_value_bias
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.subject.value_bias import read_value_bias
from autointerp.types import Json, Site
from tiny import D_MODEL, WIDTH, Tiny, make_sae


def sae_of(made: Tiny, folder: Path, shift: float, **config: object) -> Path:
    """The tiny dictionary of a stream shifted by a constant: it must subtract b_dec to fit."""
    shutil.copytree(made.sae, folder)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["b_dec"] = torch.full((D_MODEL,), shift)
    save_file(tensors, folder / "sae_weights.safetensors")
    said = json.loads((folder / "cfg.json").read_text()) | config
    (folder / "cfg.json").write_text(json.dumps(said))
    return folder


def checked(made: Tiny, sae: Path, *settings: str, n_tokens: int = 2000, fails: bool = False) -> str:
    words = ["sae", "check", str(sae), "--model", str(made.model), "--corpus", str(made.corpus)]
    words += ["--n-tokens", str(n_tokens), *(word for setting in settings for word in ("--set", setting))]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == (2 if fails else 0), done.output
    return " ".join(done.output.split())


def test_firings_without_vectors_are_refused_in_a_line(made: Tiny, tmp_path: Path) -> None:
    """What delphi cached: [0, 1, 0] is row 0, position 1, latent 0."""
    cache, tokens = tmp_path / "delphi", np.ones((2, 4), np.int64)
    delphi_files.write(cache / "layers.1", tokens, np.array([[0, 1, 0]]), np.ones(1), [0, WIDTH])
    words = ["sae", "check", str(made.sae), "--model", str(made.model)]
    done = CliRunner().invoke(app, [*words, "--set", f"activations.path={cache}"], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and "holds firings without the vectors" in done.output, done.output


def test_a_better_fit_is_reported_and_not_taken(made: Tiny, tmp_path: Path) -> None:
    """A dictionary that says that b_dec is not subtracted, though its decoder was made for that."""
    wrong = sae_of(made, tmp_path / "wrong", 5.0, apply_b_dec_to_input=False)
    output = checked(made, wrong)
    assert "Read with b_dec subtracted from the input it would fit better: FVU" in output
    assert "Nothing was switched" in output and "with each token's mean subtracted" in output
    right = checked(made, sae_of(made, tmp_path / "right", 5.0, apply_b_dec_to_input=True))
    assert "with nothing subtracted" in right and "would fit better" not in right
    found = float(output.split("instead of")[0].rsplit("FVU", 1)[1])
    as_read = float(right.split("as read")[1].split("│")[2])
    assert found == pytest.approx(as_read, rel=5e-3), "the reading proposed is the reading of the right file"


def test_the_other_side_of_the_norms_gain_is_tried(made: Tiny, tmp_path: Path) -> None:
    """A gain that leaves twenty coordinates nearly alone: a dictionary of the coordinates, of which 24 fire, fits
    what is behind it, and not what is before it. It says that it reads before."""
    shutil.copytree(made.model, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    gain = torch.full((D_MODEL,), 1e-3)
    gain[:20] = 1.0
    tensors["model.layers.1.post_attention_layernorm.weight"] = gain
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    changed = Tiny(tmp_path / "model", made.sae, made.corpus)
    rows, outputs = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)]), dict[str, str]()
    for hook in ("ln2.hook_normalized", "mlp.hook_in"):
        make_sae(tmp_path / hook, hook=f"blocks.1.{hook}")
        file = tmp_path / hook / "sae_weights.safetensors"
        save_file(load_file(file) | {"W_dec": rows, "W_enc": rows.T.contiguous()}, file)
        outputs[hook] = checked(changed, tmp_path / hook)
    before, behind = outputs.values()
    assert "Read at layers.1.mlp_in (behind the norm's gain) it would fit better: FVU" in before
    assert "would fit better" not in behind
    assert fvus(before, "at layers.1.mlp_in") == fvus(behind, "as read") < [1e-4]
    assert fvus(behind, "at layers.1.mlp_in_normalized") == fvus(before, "as read") > [0.1]


def fvus(output: str, convention: str) -> list[float]:
    """In the table's rows that begin so."""
    return [float(fvu) for fvu in re.findall(rf"│ {convention}[^│]*│[^│]*│ (\S+) │", output)]


@pytest.mark.parametrize("name", ["gpt2", "pythia", "qwen2"])
def test_z_is_tried_without_the_value_bias(made: Tiny, name: str, tmp_path: Path) -> None:
    """It is what z is more than in the same model without that bias, on every token."""
    folder, ids = tiny_families.write(name, tmp_path), tiny_families.tokens()
    model, site = find_model(str(folder)), Site("z", 0)
    subject = Subject.load(model)
    z_BTD = torch.as_tensor(subject.capture(ids, [site])[site])
    bias_D = read_value_bias(model, 0, "cpu")
    assert bias_D is not None and bias_D.abs().min() > 0
    spec = find_dictionary(str(made.sae))
    convention = Convention("as read", spec, reader_of(spec).load(spec, "cpu"))
    x_ND = z_BTD.flatten(0, 1)
    (reading,) = without_value_bias(
        Reading(convention, Inputs(x_ND), x_ND), DictionaryFound(spec, site), model
    )
    assert "fold_value_biases" in reading.convention.name and reading.y_NO is reading.inputs.x_ND
    assert torch.equal(reading.inputs.x_ND, x_ND - bias_D)
    elsewhere = DictionaryFound(spec, Site("resid_post", 0))
    assert not list(without_value_bias(Reading(convention, Inputs(x_ND), x_ND), elsewhere, model))

    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    key = next(key for key in tensors if re.search(r"\.0\..*(c_attn|query_key_value|v_proj)\.bias", key))
    for value in bias_D:  # wherever in the tensor they stand
        tensors[key][tensors[key] == value] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    without_BTD = torch.as_tensor(Subject.load(find_model(str(folder))).capture(ids, [site])[site])
    torch.testing.assert_close(z_BTD - bias_D, without_BTD, rtol=1e-4, atol=1e-5)


def test_the_figures_are_those_of_a_dense_reference(made: Tiny, tmp_path: Path) -> None:
    """k of 24 features fire; FVU by hand on the same vectors."""
    from autointerp.activations.looked_at import Inputs
    from autointerp.dictionaries.encode import Encoder
    from autointerp.stages.check import Convention, fit_of

    spec = find_dictionary(str(made.sae))
    weights = reader_of(spec).load(spec, "cpu")
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(0))
    fit = fit_of(Convention("as read", spec, weights), Inputs(x), x)
    assert weights.w_enc_DF is not None and weights.w_dec_FO is not None
    pre = x @ weights.w_enc_DF
    dense = torch.zeros_like(pre).scatter(1, *reversed(pre.topk(24, dim=1))).clamp_min(0)
    y = dense @ weights.w_dec_FO
    assert fit.l0 == (dense > 0).sum() / 50 and fit.n_dead == int((dense.sum(0) == 0).sum())
    assert fit.fvu == pytest.approx(float(((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()), rel=1e-5)
    assert fit.norm_ratio == pytest.approx(float((y.norm(dim=1) / x.norm(dim=1)).mean()), rel=1e-5)
    assert Encoder(spec, weights).encode(x).value_M.numel() == fit.l0 * 50


def test_verdicts(made: Tiny) -> None:
    spec = find_dictionary(str(made.sae))
    good = Fit("as read", 1000, 24.0, 0.2, 0, 0.9)
    assert list(verdicts(spec, [good, replace(good, convention="otherwise", fvu=0.17)])) == []
    (sentence,) = verdicts(spec, [good, replace(good, convention="with x", fvu=0.15)])
    assert sentence.startswith("Read with x it would fit better: FVU 0.15 instead of 0.2")
    (sentence,) = verdicts(spec, [replace(good, l0=spec.width / 3)])
    assert "It is dense: a token has 69.3 of its 208 features, so each fires on 33% of the tokens" in sentence
    assert "no better than the mean" in next(iter(verdicts(spec, [replace(good, fvu=1.2)])))
    worse = replace(good, fvu=464.0)
    (sentence,) = verdicts(spec, [worse, replace(worse, convention="with x", fvu=324.0)])
    assert "would fit better" not in sentence, "which is no better than the mean either"
    assert len(list(verdicts(spec, [worse, replace(worse, convention="with x", fvu=0.9)]))) == 2
    nothing = replace(good, fvu=0.0)
    assert list(verdicts(spec, [nothing, replace(nothing, convention="with x")])) == []
    stating = replace(spec, expected=Expected(l0=80.0, fvu=0.01))
    assert len(list(verdicts(stating, [good]))) == 2
    assert list(verdicts(replace(spec, expected=Expected(l0=30.0, fvu=0.25)), [good])) == []


def test_dense_is_more_than_a_quarter_and_says_how_much() -> None:
    """Three of ten is dense, and nothing is said of it that is true at four fifths only."""
    assert density(2.5, 10) is None and density(2.6, 10) is not None
    few, most = density(3.0, 10), density(52.2, 64)
    assert few is not None and "a token has 3.0 of its 10 features, so each fires on 30% of the tokens" in few
    assert most is not None and "a token has 52.2 of its 64 features, so each fires on 82% of the" in most
    assert "early every" not in few


def test_what_is_left_out_is_said_and_can_be_included(made: Tiny) -> None:
    """Rows are of 64 tokens, BOS among them, which is not counted: 2,000 tokens are 63 a row, and 32 rows."""
    output = checked(made, made.sae)
    assert "on 2,000 tokens" in output
    assert "Left out: position 0 of each row (BOS), which --set cache.mask_first=false includes." in output
    everything = checked(made, made.sae, "cache.mask_first=false", "cache.sink_ratio=null")
    assert "No token was left out." in everything
    strict = checked(made, made.sae, "cache.sink_ratio=1.001")  # half of them are above the median
    found = re.search(
        r"on ([\d,]+) tokens .*; ([\d,]+) tokens of more than 1.001 times the median norm, which", strict
    )
    assert found is not None and "which --set cache.sink_ratio=null includes" in strict
    assert sum(int(number.replace(",", "")) for number in found.groups()) == 2000


def test_one_document_is_enough(made: Tiny, tmp_path: Path) -> None:
    """Nothing is explained, so nothing has to be tested on others; a corpus that ends early is no fault."""
    one = tmp_path / "one.txt"
    one.write_text("the cat ran over the hill and a dog sat under the tree " * 200)
    for n_tokens in (500, 100_000):
        assert "features a token (L0)" in checked(replace(made, corpus=one), made.sae, n_tokens=n_tokens)
    one.write_text("  ")
    assert "is empty" in checked(replace(made, corpus=one), made.sae, fails=True)


def test_one_document_of_stored_activations_is_enough(made: Tiny, tmp_path: Path) -> None:
    """A check of them goes through; what is explained needs another document to be tested on."""
    folder, place = tmp_path / "stored", str(made.sae)
    folder.mkdir()
    x = torch.randn(24, 32, D_MODEL, generator=torch.Generator().manual_seed(3))
    rows = {
        "activations": x, "tokens": torch.arange(24 * 32).reshape(24, 32) % 200,
        "documents": torch.zeros(24, dtype=torch.int64), "positions": torch.arange(24) * 32,
    }  # fmt: skip
    save_file(rows, folder / "a.safetensors")
    recipe: Json = {
        "dictionaries": {"auto": {"path": place}},
        "activations": {"path": str(folder), "tokenizer": str(made.model)},
    }
    (one,) = check_dictionaries(recipe, 500, Silent(), Stop())
    assert one.fits[0].n_tokens > 400 and one.fits[0].fvu is not None
    recipe["llms"] = {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}}
    with pytest.raises(ActivationsError, match="holds a single document"):
        pipeline.explain(recipe, out=tmp_path / "run")


def test_how_many_tokens_is_said_in_the_checks_own_terms(made: Tiny) -> None:
    output = checked(made, made.sae, n_tokens=100_000_000, fails=True)
    assert "a check of 100,000,000 tokens" in output and "--n-tokens" in output and "shard" not in output
    assert "--n-tokens" in checked(made, made.sae, "cache.n_tokens=4000", fails=True)


def test_inspect_reads_a_header_without_torch_or_numpy(tmp_path: Path) -> None:
    """Of a file of 2 GiB (sparse: only its header is on the disk), in a process that has no room for its weights.
    Its work is under a second on a machine that does nothing else."""
    folder = tmp_path / "big"
    folder.mkdir()
    d_in, width = 1024, 2**18
    shapes = {"W_enc": [d_in, width], "W_dec": [width, d_in], "b_enc": [width], "b_dec": [d_in]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "sae_weights.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    metadata = {"hook_name": "blocks.3.hook_resid_post", "model_name": "org/m"}
    config = {"architecture": "standard", "d_in": d_in, "d_sae": width, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); "
        "from typer.testing import CliRunner; from autointerp.cli import app; "
        f"done = CliRunner().invoke(app, ['sae', 'inspect', {str(folder)!r}]); print(done.output); "
        "assert done.exit_code == 0; used = resource.getrusage(resource.RUSAGE_SELF); "
        "print('used', used.ru_utime + used.ru_stime); "
        "print('loaded', [name for name in ('numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split()) > 1)
    assert lines["format"] == "saelens" and lines["reads"] == "layers.3 (blocks.3.hook_resid_post)"
    assert lines["features"] == "262,144" and lines["selector"] == "relu"
    assert lines["loaded"] == "[]"
    assert float(lines["used"]) < 8


def test_what_is_stated_stands_beside_what_was_found(made: Tiny) -> None:
    """Also where the two agree; nothing where the checkpoint states nothing."""
    spec, fit = find_dictionary(str(made.sae)), Fit("as read", 2000, 30.0, 0.25, 10, 0.9)
    for expected, row in (
        (Expected(l0=31.5), "as the checkpoint states │ 31.5 │ not stated"),
        (Expected(fvu=0.24), "as the checkpoint states │ not stated │ 0.24"),
        (Expected(), None),
    ):
        console = Console(file=io.StringIO(), width=200)
        print_fits(console, "a", replace(spec, expected=expected), [fit], LeftOut(True, True, 0, 10.0))
        text = " ".join(cast(io.StringIO, console.file).getvalue().split())
        assert row in text if row else "as the checkpoint states" not in text


def test_inspect_prints_what_else_decides_an_activation(tmp_path: Path) -> None:
    """A crosscoder's further site, centring, and that codes alone reconstruct nothing."""
    tensors = {"encoder": torch.ones(8, 16), "decoder": torch.ones(16, 8)}
    save_file(tensors, tmp_path / "dictionary.safetensors")
    said = {"layout": 1, "selector": "relu", "hook": "layers.1", "further_hooks": ["layers.2"]}
    said |= {"model_was_centred": True, "reconstructs": False}
    (tmp_path / "dictionary.json").write_text(json.dumps(said))
    lines = dict(inspected(str(tmp_path)))
    assert lines["and reads"] == "layers.2"
    assert "LayerNorm" in lines["centred"] and lines["reconstructs"].startswith("no")


def test_inspect_says_what_the_codes_of_a_basis_are() -> None:
    said = {name: dict(inspected(name)) for name in ("experts", "neurons", "neurons:200")}
    assert said["experts"]["selector"].startswith("the weights that the router gives the experts")
    assert (
        said["neurons"]["selector"]
        == "the neurons themselves, of a token the largest by magnitude, one in 64"
    )
    assert said["neurons:200"]["selector"].startswith("abstopk, k = 200: the neurons themselves")
    assert not any("reconstructs" in lines for lines in said.values())


def test_inspect_asks_for_no_output_that_cannot_be_named(tmp_path: Path) -> None:
    tensors = {"encoder": torch.ones(8, 16), "decoder": torch.ones(16, 4)}
    save_file(tensors, tmp_path / "dictionary.safetensors")
    said = {"layout": 1, "selector": "relu", "hook": "layers.1", "is_transcoder": True}
    (tmp_path / "dictionary.json").write_text(json.dumps(said))
    assert dict(inspected(str(tmp_path)))["predicts"] == "not said"
    (tmp_path / "dictionary.json").write_text(json.dumps(said | {"hook_out": "layers.1.mlp"}))
    assert dict(inspected(str(tmp_path)))["predicts"] == "layers.1.mlp"


def test_inspecting_nothing_is_one_message() -> None:
    done = CliRunner().invoke(app, ["sae", "inspect", "no/such:thing@x y"])
    assert done.exit_code == 2 and done.output.startswith("Error: ")
