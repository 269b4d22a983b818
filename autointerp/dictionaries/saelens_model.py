"""What a SAELens cfg.json says of the model: which hook point, and what TransformerLens had there.

LayerNorm's `hook_normalized` (transformer_lens/components/layer_norm.py), in a model loaded without `fold_ln`:

    TransformerLens 2                    behind gain and bias
    TransformerLens 3 (17 April 2026)    before both, where RMSNorm's has always been

SAELens up to 6.31 requires version 2. Those from 6.32 on take 3 too, and 6.40 was the first to come out after it
(their requirements and dates on PyPI).
"""

from __future__ import annotations

import re
from typing import Final

from autointerp.dictionaries.checkpoint import Settings

WITH_TRANSFORMER_LENS_3: Final = (6, 40)
"""SAELens from here on was most likely installed with it."""


def hook_of(origin: Settings) -> str | None:
    """The hook's name; the earliest files have `blocks.{layer}.hook_resid_pre` and the layer beside it."""
    hook = origin.text("hook_name") or origin.text("hook_point")
    if hook and "{layer}" in hook:
        layer = origin.integer("hook_layer", origin.integer("hook_point_layer"))
        return None if layer is None else hook.replace("{layer}", str(layer))
    return hook


def was_centred(origin: Settings) -> bool:
    return origin.section("model_from_pretrained_kwargs").flag("center_writing_weights", False)


def is_behind_gain(origin: Settings) -> bool:
    """In models with LayerNorm."""
    return _is_unfolded(origin) and _trained_with(origin) < WITH_TRANSFORMER_LENS_3


def notes(origin: Settings) -> list[str]:
    found = list[str]()
    if was_centred(origin):
        found.append("in models with LayerNorm, inputs are centred first (center_writing_weights)")
    if is_behind_gain(origin):
        found.append("in models with LayerNorm, hook_normalized is behind gain and bias (no fold_ln)")
    elif _is_unfolded(origin):
        found.append(
            "in models with LayerNorm, hook_normalized is before gain and bias, as in TransformerLens 3; if it was "
            "trained with 2, it was behind them: `sae check` compares"
        )
    return found


def _is_unfolded(origin: Settings) -> bool:
    """A `hook_normalized` in a model as from_pretrained_no_processing gives it, by which SAELens loads it."""
    folded = origin.section("model_from_pretrained_kwargs").flag("fold_ln", False)
    return (hook_of(origin) or "").endswith(".hook_normalized") and not folded


def _trained_with(origin: Settings) -> tuple[int, int]:
    """SAELens' version; (0, 0) where it doesn't say, as before version 6. Whoever saves a dictionary again leaves
    his own version as `sae_lens_version`, and null for the training's where that is not known."""
    key = "sae_lens_training_version"
    version = origin.text(key if key in origin.values else "sae_lens_version")
    match = re.match(r"(\d{1,4})\.(\d{1,4})", version or "", re.ASCII)
    return (int(match[1]), int(match[2])) if match else (0, 0)
