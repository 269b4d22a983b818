"""Llamascopium's crosscoders: several hook points are read together, and written to.

    W_E [H, D, F], b_E [H, F]     pre = sum over hook points h of (x_h n_h) W_E[h] + b_E[h]
    W_D [H, F, D], b_D [H, D]     score_h = pre |W_D[h] row|; act_fn selects for each h by itself

A feature adds W_D[h] times pre to the hook points that select it, and its activation is pre where any does: the
largest over them, as llamascopium's own analysis takes it. With relu all select alike. `batchtopk` chooses the
top_k H B largest of the scores of B tokens at H hook points.

Hook points can also be snapshots of a model in training (step0, step1000, ...), which no run has at once.

Source: OpenMOSS/Language-Model-SAEs at 95281ac: models/crosscoder.py, models/sparse_dictionary.py,
analysis/feature_analyzer.py.
"""

from __future__ import annotations

from dataclasses import replace

from autointerp.dictionaries.checkpoint import Settings, listed
from autointerp.dictionaries.llamascopium_files import (
    Stored,
    check_width,
    has_thresholds,
    hook_list,
)
from autointerp.dictionaries.llamascopium_model import with_its_model
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_tensors


def described(spec: DictionarySpec, settings: Settings, stored: Stored) -> DictionarySpec:
    """`spec`: what all types have in common. The identity is left empty. Raises CheckpointError."""
    for key in ("use_decoder_bias", "sparsity_include_decoder_norm"):
        if not settings.flag(key, True):
            settings.refuse(key, "llamascopium's crosscoders always have it.")
    hooks = hook_list(settings, "hook_points")
    header = stored.headers.get(f"{stored.prefix}b_E")
    width = header.shape[-1] if header is not None and header.shape else 0
    spec = replace(spec, d_in=len(hooks) * spec.d_in, width=width, n_inputs=len(hooks))
    check_shapes(stored.path, stored.headers, _shapes(spec, settings, stored))
    check_width(settings, stored, width)
    sites = [site_of(hook) for hook in hooks]
    known = [site for site in sites if site is not None]
    all_known = len(known) == len(hooks)
    calibration, notes = spec.calibration, [_note(hooks, settings.count("d_model"), all_known=all_known)]
    if calibration is not None:
        notes.append(
            f"top_k, {calibration.k:g}, is counted at each input: a feature at several counts as often"
        )
        calibration = replace(calibration, k=calibration.k * len(hooks))
    spec = replace(
        spec,
        hook=hooks[0] if all_known else None,
        site=known[0] if all_known else None,
        further_sites=tuple(known[1:]) if all_known else (),
        by_input=spec.decoder_norm_gate and len(hooks) > 1,
        calibration=calibration,
        notes=(*spec.notes, *notes),
    )
    return with_its_model(spec, settings, stored.version) if all_known else spec


def weights_of(spec: DictionarySpec, settings: Settings, stored: Stored, device: str) -> Weights:
    """Raises CheckpointError, also where the files are others than described."""
    import torch

    tensors = read_tensors(stored.path, _shapes(spec, settings, stored), device)
    factors = stored.factors(settings, tensors, hook_list(settings, "hook_points"))
    w_enc_LDF, w_dec_LFD, b_enc_LF, b_dec_LD = (tensors[stored.prefix + name] for name in NAMES)
    factor_L11 = torch.tensor(factors, device=device)[:, None, None]
    norm_LF = w_dec_LFD.norm(dim=2)  # as stored: thresholds are of that scale
    largest_F = norm_LF.amax(0)
    return Weights(
        w_enc_DF=(w_enc_LDF * factor_L11).flatten(0, 1),
        b_enc_F=b_enc_LF.sum(0),
        b_pre_D=torch.zeros(spec.d_in, device=device),
        w_dec_FO=(w_dec_LFD / factor_L11).permute(1, 0, 2).flatten(1, 2),
        b_dec_O=(b_dec_LD / factor_L11[:, 0]).flatten(),
        threshold_F=tensors[stored.log_threshold].exp() if has_thresholds(spec) else None,
        score_norm_F=largest_F if spec.decoder_norm_gate else None,
        input_share_LF=(norm_LF / largest_F).nan_to_num(nan=0.0) if spec.by_input else None,
    )


NAMES = ("W_E", "W_D", "b_E", "b_D")


def _shapes(spec: DictionarySpec, settings: Settings, stored: Stored) -> Shapes:
    hooks = hook_list(settings, "hook_points")
    inputs, d_model = ("hook points", len(hooks)), ("d_model", settings.count("d_model"))
    features = ("features", spec.width)
    shapes = {
        "b_E": (inputs, features),
        "b_D": (inputs, d_model),
        "W_E": (inputs, d_model, features),
        "W_D": (inputs, features, d_model),
    }
    found: dict[str, tuple[tuple[str, int], ...]] = {
        stored.prefix + name: axes for name, axes in shapes.items()
    }
    if has_thresholds(spec):
        found[stored.log_threshold] = (features,)
    return found | stored.norms(settings, hooks)


def _note(hooks: list[str], d_model: int, *, all_known: bool) -> str:
    what = f"a crosscoder of {len(hooks)} inputs of {d_model} numbers: {listed(hooks)}"
    if all_known:
        return what
    return (
        f"{what}. Sites of one model are named in order, --hook layers.3+layers.5; of several models, or snapshots "
        "of one, store activations with the vectors of all one behind the other"
    )
