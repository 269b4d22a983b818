"""Variants of sparse autoencoders that differ from a known selector in training or decoding alone.

`dictionary.json` (`native.py`) names one as `variant`. What that says of its activations, or leaves out, stands
beside each of them, and is shown by `sae inspect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from autointerp.dictionaries.spec import Selector
from autointerp.dictionaries.thresholds import Rule


@dataclass(frozen=True, slots=True)
class Variant:
    """What a name implies."""

    paper: str
    note: str
    """For `sae inspect`."""
    selectors: tuple[Selector, ...] = ()
    """It can have; any where none is named."""
    rule: Rule | None = None
    """It must be calibrated by this."""
    approximation: str | None = None
    """What is left out against the dictionary as trained."""
    is_polynomial: bool = False
    """Its decoder is no linear map of the codes; `decoder_u1` and `decoder_c1` are its linear term."""


VARIANTS: Final[dict[str, Variant]] = {
    "vsae": Variant(
        "arXiv 2509.22994",
        "variational: activations are the means, without the noise of training; the encoder is that of the means",
    ),
    "gradient": Variant(
        "arXiv 2411.10397",
        "gradient SAE: training chose the k by activation and effect on the model's loss",
        selectors=("topk",),
        approximation="activations are plain top k: the choice in training also needs the gradient of the model's "
        "loss (gradient_weight asks for it, and for a backward pass)",
    ),
    "polysae": Variant(
        "arXiv 2602.01322",
        "the decoder is not linear in the codes: directions are rows of U1 C1^T, its linear term alone, and "
        "reconstructions are not checked",
        is_polynomial=True,
    ),
    "mfr": Variant("arXiv 2411.01220", "mutual feature regularisation: nothing differs but training"),
    "fast": Variant(
        "arXiv 2506.07691",
        "trained on conversations, each by itself: cache such, through the chat template (--set corpus.chat=true)",
    ),
    "gba": Variant(
        "arXiv 2506.14002", "group bias adaptation: nothing differs but the biases that training left"
    ),
    "mutual_choice": Variant(
        "arXiv 2411.02124",
        "chose freely among a batch's tokens and features in training",
        selectors=("jumprelu",),
        rule="mutual_choice",
    ),
    "feature_choice": Variant(
        "arXiv 2411.02124",
        "each feature chose as many of a batch's tokens in training",
        selectors=("jumprelu",),
        rule="feature_choice",
    ),
    "sampled": Variant(
        "arXiv 2508.21324",
        "Sampled-SAE: each batch had a pool of features of its own in training; one pool, of a large batch, is "
        "kept, and features outside of it never fire",
        selectors=("jumprelu",),
        rule="sampled",
    ),
}
