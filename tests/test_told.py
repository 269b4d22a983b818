"""What a run says of its dictionaries beside their numbers: that one is dense, which features can't fire."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from autointerp.cli import app
from tiny import CONTEXT, WIDTH, Tiny


def told(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def explained(made: Tiny, sae: Path, out: Path, n_tokens: int) -> str:
    places = ["--sae", str(sae), "--model", str(made.model), "--corpus", str(made.corpus), "--out", str(out)]
    settings = [
        "--set",
        f"cache.n_tokens={n_tokens}",
        "--set",
        "controls=off",
        "--set",
        "sampling.minimum=20",
    ]
    return told("explain", *places, *settings, "--first", str(WIDTH), "--llm", "lexical")


def test_a_dense_dictionary_is_called_so_wherever_its_numbers_are(made: Tiny, tmp_path: Path) -> None:
    """Both directions of each of 104 axes, without a top k: one of the two is positive, so half of all fire."""
    sae, out = tmp_path / "sae", tmp_path / "run"
    shutil.copytree(made.sae, sae)
    said = json.loads((sae / "cfg.json").read_text()) | {"architecture": "standard"}
    (sae / "cfg.json").write_text(json.dumps(said))
    sentence = (
        "is dense: a token has 104.0 of its 208 features, so each fires on 50% of the tokens on average."
    )
    output = explained(made, sae, out, 8_000)
    assert output.count("is dense") == 1 and f"layers.1 {sentence}" in output
    assert output.index("104.0 features a token, explains") < output.index(sentence)
    assert f"layers.1 {sentence}" in told("status", str(out))
    report = ["report", str(out), "--out", str(tmp_path / "report")]
    told(*report)
    assert f"`layers.1` {sentence}" in (tmp_path / "report" / "report.md").read_text()
    places = ["--model", str(made.model), "--corpus", str(made.corpus)]
    assert f"It {sentence}" in told("sae", "check", str(sae), *places, "--n-tokens", "1000")


def test_nothing_is_said_of_one_that_is_sparse(made: Tiny, tmp_path: Path) -> None:
    """24 of 208."""
    assert "dense" not in explained(made, made.sae, tmp_path / "run", 8_000)
    assert "dense" not in told("status", str(tmp_path / "run"))


def test_features_outside_of_a_pool_are_told_from_those_that_are_dead(made: Tiny, tmp_path: Path) -> None:
    """A Sampled-SAE with 60 candidates of 208."""
    sae, out = tmp_path / "sampled", tmp_path / "run"
    sae.mkdir()
    tensors = load_file(made.sae / "sae_weights.safetensors")
    save_file({"encoder": tensors["W_enc"], "decoder": tensors["W_dec"]}, sae / "dictionary.safetensors")
    calibration = {"rule": "sampled", "k": 12, "pool": 60, "column_score": "l2"}
    said = {"layout": 1, "hook": "layers.1", "context_length": CONTEXT, "selector": "jumprelu"}
    (sae / "dictionary.json").write_text(
        json.dumps(said | {"variant": "sampled", "calibration": calibration})
    )
    output = explained(made, sae, out, 6_000)
    assert "calibrate (2 passes) · layers.1: 12,000 tokens" in output
    assert "layers.1: 60 of 208 features can fire; the other 148 are outside of the pool" in output
    reason = "outside of the pool that calibration chose, so that they can't fire"
    assert f"148 {reason}" in output and f"148 {reason}" in told("status", str(out))
    (thresholds,) = out.rglob("calibration*.npy")
    is_out = torch.isinf(torch.from_numpy(np.load(thresholds)))
    for feature in (int(is_out.nonzero()[0]), int((~is_out).nonzero()[0])):
        shown = told("show", str(out), str(feature))
        assert ("outside of the pool that calibration chose" in shown) == bool(is_out[feature])
    thresholds.write_bytes(thresholds.read_bytes()[:100])
    for words in (["status", str(out)], ["show", str(out), str(int(is_out.nonzero()[0]))]):
        broken = CliRunner().invoke(app, words, env={"COLUMNS": "500"})
        assert (
            broken.exit_code == 2 and "not what was written" in broken.output and "--repair" in broken.output
        )
    thresholds.unlink()
    assert "fire" in told("status", str(out)), "a run without them can be looked at"


def test_one_pass_is_not_counted_as_several(made: Tiny, tmp_path: Path) -> None:
    """BatchTopK: every feature can fire, and nothing is said of others."""
    sae = tmp_path / "batch"
    sae.mkdir()
    tensors = load_file(made.sae / "sae_weights.safetensors")
    save_file({"encoder": tensors["W_enc"], "decoder": tensors["W_dec"]}, sae / "dictionary.safetensors")
    said = {"layout": 1, "hook": "layers.1", "context_length": CONTEXT, "selector": "jumprelu"}
    calibration = {"rule": "batch_topk", "k": 12, "batch_tokens": 500}
    (sae / "dictionary.json").write_text(json.dumps(said | {"calibration": calibration}))
    output = explained(made, sae, tmp_path / "run", 6_000)
    assert (
        "calibrate · layers.1: 6,000 tokens" in output and "can fire" not in output and "pool" not in output
    )
