"""Lone files of the four usual tensors, and a real one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dense_codes import Array, assert_parity, exact, inputs, save_torch, tensors
from safetensors.numpy import save_file

from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError


def dense(x: Array, t: dict[str, Array], thresholds: bool) -> tuple[Array, Array]:
    t = exact(t)
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    acts = np.where(pre > (t["threshold"] if thresholds else 0), pre, 0).clip(0)
    return acts, acts @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize("thresholds", [False, True])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_both_orientations(tmp_path: Path, suffix: str, linear: bool, thresholds: bool) -> None:
    t, x = tensors(), inputs()
    stored = {name: value for name, value in t.items() if thresholds or name != "threshold"}
    if linear:
        stored |= {name: np.ascontiguousarray(t[name].T) for name in ("W_enc", "W_dec")}
    path = tmp_path / f"mine{suffix}"
    save_torch(path, stored) if suffix == ".pt" else save_file(stored, path)
    spec = assert_parity(path, x, *dense(x, t, thresholds))
    assert spec.format == "state_dict" and spec.site is None and spec.model is None
    assert "sae check" in spec.notes[0]


def test_axes_that_fit_no_bias_are_refused(tmp_path: Path) -> None:
    t = {name: value for name, value in tensors().items() if name != "threshold"}
    path = save_torch(tmp_path / "mine.pt", t | {"W_dec": t["W_dec"][:, :4].copy()})
    with pytest.raises(CheckpointError, match="'W_dec' has shape"):
        find_dictionary(str(path))


# --- a real one, trained by others on a tiny model whose task is known -----------------------------------

PUBLISHED = {"resid_pre 0": (50, 0.0006), "resid_post 0": (53, 0.0017), "resid_post 1": (52, 0.0007)}
"""Mean L0 of 64 and FVU on all prompts, as its authors' own code gives them."""


def vectors(real: Path) -> dict[str, torch.Tensor]:
    """The residual stream of all 8^4 x 4 prompts, by hand from transformers, at three places."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(real / "models" / "toy-routing-gpt2").eval()
    features = torch.cartesian_prod(*[torch.arange(8)] * 4)
    prompts = torch.cat([torch.cat([features, torch.full((4096, 1), 8 + k)], dim=1) for k in range(4)])
    with torch.inference_mode():
        streams = [
            model.transformer(batch, output_hidden_states=True).hidden_states[:2]
            for batch in prompts.split(4096)
        ]
        last: list[torch.Tensor] = []
        model.transformer.h[1].register_forward_hook(
            lambda _, __, output: last.append(output if isinstance(output, torch.Tensor) else output[0])
        )
        for batch in prompts.split(4096):
            model.transformer(batch)
    return {
        "resid_pre 0": torch.cat([one[0] for one in streams]).flatten(0, 1),
        "resid_post 0": torch.cat([one[1] for one in streams]).flatten(0, 1),
        "resid_post 1": torch.cat(last).flatten(0, 1),
    }


def test_the_published_figures_of_a_real_dictionary_come_out(real: Path) -> None:
    """In both of its layouts."""
    x_of = vectors(real)
    for layout in ("sae.pt", "saelens"):
        spec = find_dictionary(str(real / "saes" / "toy-routing" / layout))
        assert (spec.d_in, spec.width, spec.selector) == (32, 64, "relu"), layout
        encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"))
        for place, (l0, fvu) in PUBLISHED.items():
            x = x_of[place]
            codes = encoder.encode(x)
            error = (x - encoder.decode(codes, x)).double().square().sum()
            found = float(error / (x - x.mean(0)).double().square().sum())
            assert round(len(codes) / len(x)) == l0, (layout, place)
            assert found == pytest.approx(fvu, abs=0.00006), (layout, place)


def test_it_is_called_dense(real: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from autointerp.cli import app

    prompts = [
        f"f{n % 8} f{n // 8 % 8} f{n // 64 % 8} f{n // 512 % 8} SEL{n // 4096 % 4}"
        for n in range(0, 16384, 7)
    ]
    corpus = tmp_path / "prompts.txt"
    corpus.write_text("<|endoftext|>".join(prompts))
    words = ["sae", "check", str(real / "saes" / "toy-routing" / "sae.pt"), "--hook", "layers.1"]
    words += ["--model", str(real / "models" / "toy-routing-gpt2"), "--corpus", str(corpus)]
    words += ["--n-tokens", "5000", "--set", "cache.context_length=5", "--set", "cache.prepend_bos=false"]
    words += ["--set", "cache.mask_first=false"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "It is dense: a token has 5" in " ".join(done.output.split())
    assert "would fit better" not in done.output
