"""Our sites against TransformerLens' cache, name by name, on tiny models of every family.

Needs TransformerLens (4.3), which pins much and therefore gets an environment of its own: `make test-parity`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from autointerp.errors import SiteError
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.subject.sites import check_site, parse_hook
from tiny_families import CONFIGS, EXPERTS, POST_NORM, tokens, write

pytest.importorskip("transformer_lens", reason="TransformerLens is not installed: make test-parity")
pytestmark = pytest.mark.parity

LAYER = 1
NAMES = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "ln1.hook_normalized",
    "attn.hook_in",
    "attn.hook_z",
    "hook_attn_out",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "mlp.hook_post",
    "mlp.hook_out",
    "hook_mlp_out",
)


def lacks(name: str) -> set[str]:
    """Names that TransformerLens has no tensor for in this family, or one that is no site."""
    missing: set[str] = set()
    if name == "pythia":
        missing |= {"hook_resid_mid"}
    if name in POST_NORM:
        missing |= {"ln1.hook_normalized", "ln2.hook_normalized"}
    if name in EXPERTS:
        missing |= {"mlp.hook_post"}  # there it is what the MLP gives, not neurons
    return missing


def cache_of(folder: Path, ids: Tensor) -> Any:
    """TransformerLens' own, of the same weights, without any of its processing."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    bridge = cast(Any, TransformerBridge).boot_transformers(
        str(folder), tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    with torch.no_grad():
        return bridge.run_with_cache(ids)[1]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "gemma3"])  # its bridge wants images
def test_every_name_holds_what_transformer_lens_caches(name: str, tmp_path: Path) -> None:
    """Exactly the names that have a tensor there are sites here, and the tensors are equal."""
    folder, ids = write(name, tmp_path), tokens()
    cache, subject = cache_of(folder, ids), Subject.load(find_model(str(folder)))
    read = [short for short in NAMES if short not in lacks(name)]
    for short in read:
        hook = f"blocks.{LAYER}.{short}"
        site = parse_hook(hook, subject.architecture.model_type)
        check_site(site, subject.architecture)
        captured = subject.capture(ids, [site])[site]
        theirs = cache[hook]
        theirs = theirs.flatten(2) if short == "attn.hook_z" else theirs
        np.testing.assert_allclose(captured, theirs, atol=2e-4, rtol=2e-4, err_msg=hook)
    for short in lacks(name):
        hook = f"blocks.{LAYER}.{short}"
        with pytest.raises(SiteError):
            check_site(parse_hook(hook, subject.architecture.model_type), subject.architecture)
