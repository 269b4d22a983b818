"""`autointerp sae inspect` and `sae check`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from autointerp.cli import app
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.spec import Expected
from autointerp.fits import Fit, verdicts
from tiny import D_MODEL, Tiny


def sae_of(made: Tiny, folder: Path, shift: float, **config: object) -> Path:
    """The tiny dictionary of a stream shifted by a constant: it must subtract b_dec to fit."""
    shutil.copytree(made.sae, folder)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["b_dec"] = torch.full((D_MODEL,), shift)
    save_file(tensors, folder / "sae_weights.safetensors")
    said = json.loads((folder / "cfg.json").read_text()) | config
    (folder / "cfg.json").write_text(json.dumps(said))
    return folder


def checked(made: Tiny, sae: Path) -> str:
    words = ["sae", "check", str(sae), "--model", str(made.model), "--corpus", str(made.corpus)]
    done = CliRunner().invoke(app, [*words, "--n-tokens", "2000"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


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


def test_the_figures_are_those_of_a_dense_reference(made: Tiny, tmp_path: Path) -> None:
    """k of 24 features fire; FVU by hand on the same vectors."""
    from autointerp.dictionaries.encode import Encoder
    from autointerp.stages.check import Convention, fit_of

    spec = find_dictionary(str(made.sae))
    weights = reader_of(spec).load(spec, "cpu")
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(0))
    fit = fit_of(Convention("as read", spec, weights), x, x)
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
    assert "It is dense: a token has 69 of its 208 features" in sentence
    assert "no better than the mean" in next(iter(verdicts(spec, [replace(good, fvu=1.2)])))
    stating = replace(spec, expected=Expected(l0=80.0, fvu=0.01))
    assert len(list(verdicts(stating, [good]))) == 2
    assert list(verdicts(replace(spec, expected=Expected(l0=30.0, fvu=0.25)), [good])) == []


def test_inspect_needs_no_torch_and_under_a_second_of_work(tmp_path: Path) -> None:
    """Of a file of 3 GB (sparse: only its header is on the disk)."""
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
        "import sys; from typer.testing import CliRunner; from autointerp.cli import app; "
        f"done = CliRunner().invoke(app, ['sae', 'inspect', {str(folder)!r}]); print(done.output); "
        "assert done.exit_code == 0; print('torch' in sys.modules)"
    )
    began = time.process_time()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert time.process_time() - began < 1
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split()) > 1)
    assert lines["format"] == "saelens" and lines["reads"] == "layers.3 (blocks.3.hook_resid_post)"
    assert lines["features"] == "262,144" and lines["selector"] == "relu"
    assert done.stdout.rstrip().endswith("False"), "no torch"


def test_inspecting_nothing_is_one_message() -> None:
    done = CliRunner().invoke(app, ["sae", "inspect", "no/such:thing@x y"])
    assert done.exit_code == 2 and done.output.startswith("Error: ")
