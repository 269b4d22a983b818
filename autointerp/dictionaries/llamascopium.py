"""Llamascopium (OpenMOSS, formerly lm-saes): a folder with config.json and sae_weights.safetensors or .pt.

    score = (x n_in) W_E + b_E, times |W_D row| with `sparsity_include_decoder_norm`
    activation = what act_fn leaves of the score, divided by that norm again

`norm_activation` says what n is: of each token sqrt(d_model) / its norm, a constant for the data set that is
stored with the weights, or 1 (`inference`: folded in before). Thresholds are stored as logarithms, and compared
with scores in the scaled space. `batchtopk` chose among a training batch and stores no threshold: a run calibrates
it, on scores (`calibrate.py`). Older files (R1-Distill) have the tensors of torch's linear layers.

Of the types `crosscoder` and `clt`: `llamascopium_crosscoder.py`, `llamascopium_clt.py`.

Source: OpenMOSS/Language-Model-SAEs, llamascopium 2.0.0b34: models/sae.py, models/sparse_dictionary.py,
activation_functions.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries import llamascopium_clt as clt
from autointerp.dictionaries import llamascopium_crosscoder as crosscoder
from autointerp.dictionaries.checkpoint import Settings, folder_of, layer_in, read_settings
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.llamascopium_files import (
    CONFIG,
    WEIGHTS,
    Stored,
    check_width,
    common,
    has_thresholds,
    stored_in,
)
from autointerp.dictionaries.llamascopium_model import with_its_model
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import DictionarySpec, Expected, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint
from autointerp.types import digest

TYPES: Final = ("sae", "crosscoder", "clt")
LAYOUTS: Final = (
    Layout("W_E", "W_D", "b_E", "b_D"),
    Layout("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias", linear=True),
)


@dataclass(frozen=True, slots=True)
class Llamascopium:
    """Llamascopium (OpenMOSS): config.json with sae_type + sae_weights.safetensors; also crosscoders and CLTs."""

    version: ClassVar[str] = "2"

    def recognises(self, path: Path) -> bool:
        folder, layer = layer_in(folder_of(path, CONFIG, *WEIGHTS))
        try:
            values = read_settings(folder / CONFIG).values
        except CheckpointError:
            return False
        return "sae_type" in values and "d_model" in values and (layer is None or clt.is_clt(values))

    def describe(self, path: Path) -> DictionarySpec:
        """Reads config.json and the header of the weights. Raises CheckpointError."""
        folder, layer = layer_in(folder_of(path, CONFIG, *WEIGHTS))
        settings = read_settings(folder / CONFIG)
        kind = _kind(settings)
        spec, stored = common(folder, settings), stored_in(folder)
        if kind == "clt":
            spec = clt.described(spec, settings, stored, layer)
        elif kind == "crosscoder":
            spec = crosscoder.described(spec, settings, stored)
        else:
            spec = _described(spec, settings, stored)
        identity = fingerprint([folder / CONFIG, stored.path])
        return replace(spec, identity=identity if layer is None else digest(identity, layer))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        folder, layer = layer_in(spec.path)
        settings, stored = read_settings(folder / CONFIG), stored_in(folder)
        if layer is not None:
            return clt.weights_of(spec, settings, stored, layer, device)
        if _kind(settings) == "crosscoder":
            return crosscoder.weights_of(spec, settings, stored, device)
        layout = _layout(stored)
        tensors = read_tensors(stored.path, _shapes(spec, settings, stored), device)
        weights = layout.weights(tensors)
        threshold_F, norm_F = None, None
        if has_thresholds(spec):
            threshold_F = tensors[stored.log_threshold].exp()
            norm_F = weights.decoder.norm(dim=1)  # as stored: thresholds are of that scale
        factors = stored.factors(settings, tensors, _hooks(settings))
        n_in, n_out = factors[0], factors[-1]
        return replace(
            weights,
            w_enc_DF=weights.encoder * n_in,
            w_dec_FO=weights.decoder / n_out,
            b_dec_O=weights.b_dec_O / n_out,
            threshold_F=threshold_F,
            score_norm_F=norm_F if spec.decoder_norm_gate else None,
        )


def _kind(settings: Settings) -> str:
    kind = settings.text("sae_type") or ""
    if kind not in TYPES:
        settings.refuse("sae_type", f"of Llamascopium's dictionaries, these are read: {', '.join(TYPES)}.")
    return kind


def _described(spec: DictionarySpec, settings: Settings, stored: Stored) -> DictionarySpec:
    """A dictionary of one input, perhaps a transcoder."""
    if not settings.flag("use_decoder_bias", True):
        settings.refuse("use_decoder_bias", "only dictionaries with a decoder bias are read.")
    if any("_glu" in name for name in stored.headers):
        raise CheckpointError(
            f"{stored.path} holds a gate of its own on the encoder (GLU), which is not read."
        )
    _, width = _layout(stored).sizes(stored.path, stored.headers)
    check_width(settings, stored, width)
    hook, *out = _hooks(settings)
    spec = replace(
        spec,
        width=width,
        hook=hook,
        site=site_of(hook),
        hook_out=out[0] if out else None,
        site_out=site_of(out[0]) if out else None,
        d_out=spec.d_in if out else None,
        is_transcoder=bool(out),
        # What a transcoder gives is then scaled as its output was, token by token, which nobody knows.
        reconstructs=not (spec.transform and out),
        expected=Expected(l0=None if spec.calibration is None else spec.calibration.k),
    )
    check_shapes(stored.path, stored.headers, _shapes(spec, settings, stored))
    return with_its_model(spec, settings, stored.version)


def _layout(stored: Stored) -> Layout:
    layouts = [layout.below(stored.prefix) for layout in LAYOUTS]
    return next((layout for layout in layouts if layout.w_enc in stored.headers), layouts[0])


def _shapes(spec: DictionarySpec, settings: Settings, stored: Stored) -> Shapes:
    shapes = dict(_layout(stored).shapes(spec))
    if has_thresholds(spec):
        shapes[stored.log_threshold] = (("features", spec.width),)
    return shapes | stored.norms(settings, _hooks(settings))


def _hooks(settings: Settings) -> list[str]:
    """Input and, where it is another place, output."""
    hook = settings.text("hook_point_in")
    if hook is None:
        raise CheckpointError(f"{settings.path} has no 'hook_point_in'.")
    return list(dict.fromkeys([hook, settings.text("hook_point_out") or hook]))
