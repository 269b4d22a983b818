"""Where a direction reaches the vocabulary: which sites write to the residual stream, and what a family's final norm
does. By names alone, no torch: a recipe is checked with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from autointerp.types import Point, Site


@dataclass(frozen=True, slots=True)
class FinalNorm:
    """What a family's final norm does to a direction, its scale aside."""

    centres: bool
    """LayerNorm: the mean over D goes first."""
    offset: float = 0.0
    """The gain is the stored weight plus this: 1 in Gemma."""
    has_weight: bool = True
    """Whether there is a gain to read; else it is 1."""


_LAYER_NORM: Final = FinalNorm(centres=True)
_RMS_NORM: Final = FinalNorm(centres=False)
_GEMMA: Final = FinalNorm(centres=False, offset=1.0)
_PLAIN_LAYER_NORM: Final = FinalNorm(centres=True, has_weight=False)

FINAL_NORMS: Final[dict[str, FinalNorm]] = {
    **dict.fromkeys(("gpt2", "gpt_neox", "gptj", "phi", "starcoder2"), _LAYER_NORM),
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _RMS_NORM),
    **dict.fromkeys(("phi3", "olmo2", "olmo3", "gpt_oss", "smollm3"), _RMS_NORM),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), _GEMMA),
    "olmo": _PLAIN_LAYER_NORM,
}
"""By transformers' model_type (5.19, models/*/modeling_*.py). A weight's name and shape don't tell which kind
it is, so a family that is not here has no promoted vocabulary rather than a wrong one."""

_WRITES_TO_STREAM: Final = ("resid_pre", "resid_mid", "resid_post", "mlp_out", "attn_out")
_THROUGH_A_PROJECTION: Final = ("neurons", "z", "attn_raw", "mlp_raw")
_READ_ONLY: Final = "'{site}' is read from the residual stream, nothing there is written to it"
_NOT_WRITTEN: Final[dict[Point, str]] = {
    "experts": "'{site}' holds the weights of the experts: what an expert writes to the residual stream is "
    "another vector on every token, so no direction is its own",
}


def without_vocabulary(model_type: str, site: Site) -> str | None:
    """Why directions at a site of such a model have no promoted tokens; None where they have, if the weights are as
    expected."""
    if model_type not in FINAL_NORMS:
        return f"how a '{model_type}' model's final norm works is not known here"
    if site.point not in (*_WRITES_TO_STREAM, *_THROUGH_A_PROJECTION):
        return _NOT_WRITTEN.get(site.point, _READ_ONLY).format(site=site)
    return None
