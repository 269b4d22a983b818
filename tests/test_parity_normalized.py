"""`hook_normalized` of TransformerLens 3, as SAELens loads models with it, against where its dictionaries read here.

    PYTHONPATH=.../transformer-lens-3.9 pytest -m parity tests/test_parity_normalized.py

`test_parity_sites.py` has the same names of TransformerLens 4, of every family.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_places import F, found_in
from torch import Tensor

from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.subject.sites import parse_hook
from tiny_families import D_MODEL, POSITIONS, reference, tokens, write

lens = pytest.importorskip(
    "transformer_lens.HookedTransformer",
    reason="TransformerLens 3 is not installed: make test-parity",
    exc_type=ImportError,
)
pytestmark = pytest.mark.parity

LAYER_NORM, RMS_NORM = ("gpt2", "pythia"), ("llama", "mistral", "qwen2", "qwen3")
KWARGS: list[dict[str, bool]] = [{}, {"fold_ln": True}]


CHANGES: dict[str, dict[str, int]] = {
    "gpt2": {"n_ctx": POSITIONS, "n_inner": 4 * D_MODEL},
    "llama": {"head_dim": D_MODEL // 2},
}
"""What TransformerLens 3 takes for granted in a family."""


def model_at(name: str, tmp_path: Path) -> Path:
    """In a folder whose name says no family: TransformerLens 3 goes by names."""
    return write(name, tmp_path / "m", **CHANGES.get(name, {}))


def cache_of(folder: Path, ids: Tensor, kwargs: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> Any:
    """As SAELens 6.54.12 loads it: load_model.py."""
    from transformers import PreTrainedTokenizerFast

    loading: Any = importlib.import_module("transformer_lens.loading_from_pretrained")
    monkeypatch.setattr(loading, "OFFICIAL_MODEL_NAMES", [str(folder)])  # a list, and not a hub's answer
    model = lens.HookedTransformer.from_pretrained_no_processing(
        str(folder),
        hf_model=reference(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        device="cpu",
        **kwargs,
    )
    with torch.no_grad():
        return model.run_with_cache(ids)[1]


def assert_same(found: Any, expected: Tensor) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kwargs", KWARGS)
@pytest.mark.parametrize("norm", ["ln1", "ln2"])
@pytest.mark.parametrize("name", [*LAYER_NORM, *RMS_NORM])
def test_the_name_is_the_same_place(
    name: str, norm: str, kwargs: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before gain and bias, in LayerNorm and in RMSNorm, folded or not: a gain of other numbers than ones is behind
    each of them."""
    folder, ids = model_at(name, tmp_path), tokens()
    hook = f"blocks.1.{norm}.hook_normalized"
    theirs = cache_of(folder, ids, kwargs, monkeypatch)[hook]
    subject = Subject.load(find_model(str(folder)))
    site = parse_hook(hook, subject.architecture.model_type)
    behind = parse_hook(
        f"layers.1.{'attn_in' if norm == 'ln1' else 'mlp_in'}", subject.architecture.model_type
    )
    captured = subject.capture(ids, [site, behind])
    assert_same(captured[site], theirs)
    assert not np.allclose(captured[behind], theirs, atol=0.1)


@pytest.mark.parametrize("kwargs", KWARGS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_saelens_saves_reads_what_it_was_trained_on(
    name: str, kwargs: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version that it writes down, which takes TransformerLens 3, says where."""
    saes = pytest.importorskip("sae_lens.saes", reason="sae-lens is not installed: make test-parity")
    folder, ids, hook = model_at(name, tmp_path), tokens(), "blocks.1.ln2.hook_normalized"
    metadata = saes.sae.SAEMetadata(hook_name=hook, model_name="gpt2", model_from_pretrained_kwargs=kwargs)
    configuration = saes.StandardSAEConfig(d_in=D_MODEL, d_sae=F, metadata=metadata)
    saes.StandardSAE(configuration).save_model(tmp_path / "sae")
    found = found_in(folder, tmp_path / "sae")
    captured = Subject.load(find_model(str(folder))).capture(ids, [found.site])[found.site]
    assert_same(captured, cache_of(folder, ids, kwargs, monkeypatch)[hook])
