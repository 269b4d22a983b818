"""A model whose activations are NaN or infinite: told before any token is dropped, and nothing else is blamed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from autointerp.cli import app
from tiny import Tiny


def spoiled(made: Tiny, folder: Path, tensor: str, rows: list[int], value: str) -> Path:
    """The tiny model with some rows of a weight that are no numbers."""
    shutil.copytree(made.model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor][rows] = float(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def said(words: list[str]) -> str:
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("verb", ["check", "explain"])
@pytest.mark.parametrize(
    ("tensor", "rows", "value", "sae", "site"),
    [
        ("model.layers.1.mlp.down_proj.weight", [3], "nan", None, "layers.1"),
        ("model.layers.1.mlp.down_proj.weight", [3], "nan", "neurons", "layers.2.neurons"),
        ("model.embed_tokens.weight", [*range(60, 70)], "inf", None, "layers.1"),
    ],
)
def test_no_dictionary_is_blamed_for_its_model(
    made: Tiny,
    tmp_path: Path,
    verb: str,
    tensor: str,
    rows: list[int],
    value: str,
    sae: str | None,
    site: str,
) -> None:
    model = spoiled(made, tmp_path / "model", tensor, rows, value)
    place = [str(made.sae) if sae is None else sae]
    others = ["--model", str(model), "--corpus", str(made.corpus), "--hook", site]
    if verb == "check":
        output = said(["sae", "check", *place, *others, "--n-tokens", "2000"])
    else:
        run = ["--out", str(tmp_path / "run"), "--llm", "lexical", "--set", "cache.n_tokens=5000"]
        output = said(["explain", "--sae", *place, *others, *run, "--n-features", "5"])
    found = re.search(
        rf"activations at '{re.escape(site)}' are NaN or infinite on ([\d,]+) of ([\d,]+) tok", output
    )
    assert found is not None, output
    n_bad, n = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < n_bad <= n and (n_bad < n or value == "nan"), (
        "what stands before a bad word in its row is sound"
    )
    assert "of the variance" not in output and "complete" not in output and "fit better" not in output
