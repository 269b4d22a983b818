"""How Llamascopium had the model that a dictionary was trained on, by the version that saved it.

    0.1.0                           TransformerLens' from_pretrained, later from_pretrained_no_processing
    1.*, and 2.* up to 2.0.0b31     from_pretrained_no_processing
    2.0.0b32 and later (April 2026) load_and_process_state_dict with its defaults: center_writing_weights,
                                    fold_value_biases, fold_ln; Qwen 2.5, with RMSNorm, from transformers

Without `fold_ln` a LayerNorm's `hook_normalized` was behind gain and bias: up to 2.0.0b31 the TransformerLens of the
day was version 2 (see `saelens_model.py`).

Source: OpenMOSS/Language-Model-SAEs at 10d63996, cd2829ea: backend/language_model.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from autointerp.dictionaries.checkpoint import Settings
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.subject.sites import BEHIND_GAIN

Version = tuple[int, int, int, str, int]
PROCESSED_FROM: Final[Version] = (2, 0, 0, "b", 32)
UNPROCESSED_FROM: Final[Version] = (1, 0, 0, "", 0)
"""Earlier ones came both ways."""


def with_its_model(spec: DictionarySpec, settings: Settings, version: str | None) -> DictionarySpec:
    """`spec` has its places, `version` is what its weights say. A config.json that names center_writing_weights or
    fold_value_biases, which Llamascopium's don't, has the last word. Raises CheckpointError."""
    sites = [site for site in (spec.site, *spec.further_sites) if site is not None]
    saved_by = _parsed(version)
    processed = saved_by is not None and saved_by >= PROCESSED_FROM
    normalized = (spec.hook or "").endswith(".hook_normalized") or any(s.point in BEHIND_GAIN for s in sites)
    at_z = any(site.point == "z" for site in sites)
    notes = list(spec.notes)
    if saved_by is None or saved_by < UNPROCESSED_FROM:
        if "center_writing_weights" not in settings.values and not (at_z or normalized):
            notes.append(
                "of models with LayerNorm the stream may have been centred, which its files don't say: `sae check` "
                "compares, and center_writing_weights: true in config.json centres it"
            )
        if at_z and "fold_value_biases" not in settings.values:
            notes.append(
                "value biases may have been taken out of z, which its files don't say: `sae check` compares, and "
                "fold_value_biases: true in config.json takes them out"
            )
    if normalized and not processed:
        notes.append("in models with LayerNorm, hook_normalized is behind gain and bias (no fold_ln)")
    return replace(
        spec,
        model_was_centred=settings.flag("center_writing_weights", processed),
        centring_is_default="center_writing_weights" not in settings.values and processed,
        without_value_bias=at_z and settings.flag("fold_value_biases", processed),
        normalized_behind_gain=normalized and not processed,
        notes=tuple(notes),
    )


def _parsed(version: str | None) -> Version | None:
    """Versions as they follow on each other: 2.0.0b4 < 2.0.0b32 < 2.0.0rc1 < 2.0.0."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:(a|b|rc)(\d{1,4}))?", version or "", re.ASCII)
    if match is None:
        return None
    return (int(match[1]), int(match[2]), int(match[3]), match[4] or "release", int(match[5] or 0))
