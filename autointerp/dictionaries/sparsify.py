"""sparsify checkpoints (EleutherAI): a folder a hook point, with cfg.json and sae.safetensors.

Source: EleutherAI/sparsify at 9d3b136: sparsify/sparse_coder.py, config.py, fused_encoder.py, data.py.

    topk       relu((x - b_dec) @ encoder.weight.T + encoder.bias), of these the k largest of each token
    groupmax   of these the largest of each of k groups; features stand in order, F/k of them a group
    signed     (June to August 2024, a48257e) no relu: the k largest by magnitude, with their signs
    transcode  x @ encoder.weight.T: b_dec is not subtracted; W_skip [d_in, d_in], if any, takes x itself

The folder's name is the module path whose output is read (`layers.7`, `h.7.mlp`), for a transcoder the
module whose input is read and whose output is predicted. A multi-seed run has `seedN` folders below it,
and the run's config.json lies above (model, dataset, ctx_len). What the files don't say:

- Contexts had no BOS: documents are joined by EOS and cut into `ctx_len` tokens (data.py).
- `layer_N` is how versions before July 2024 named the *input* of layer N: they took
  `hidden_states[N]` (2cc21c8:sae/trainer.py). It is not `layers.N`, the output of that layer.
- Transcoders from before 12 February 2025 (f02711e) say `transcode` only in the run's settings, if at
  all, and did subtract b_dec.
- The library of today takes `signed` for a setting without a meaning, and would apply relu.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, folder_of, read_settings, require_files
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import DictionarySpec, Selector, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

CONFIG, WEIGHTS, RUN_CONFIG = "cfg.json", "sae.safetensors", "config.json"

ACTIVATIONS: Final[dict[str, Selector]] = {"topk": "topk", "groupmax": "groupmax"}
CROSS_LAYER: Final = "a cross-layer transcoder (clt-training), which is not read."
SKIP: Final = "W_skip"
DEFAULT_EXPANSION: Final = 32

SEED_FOLDER = re.compile(r"seed\d+")
LAYER_FOLDER = re.compile(r"layer_(\d+)(?:\.pt)?")


@dataclass(frozen=True, slots=True)
class Sparsify:
    """sparsify (EleutherAI): cfg.json + sae.safetensors in a folder named after the module; topk, groupmax."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        folder = folder_of(path, CONFIG, WEIGHTS)
        if (folder / WEIGHTS).is_file():
            return True
        try:
            known = read_settings(folder / CONFIG).values.keys()
        except CheckpointError:
            return False
        return "d_in" in known and "d_sae" not in known and bool({"expansion_factor", "num_latents"} & known)

    def describe(self, path: Path) -> DictionarySpec:
        """Reads cfg.json, the run's config.json and the header of the weights. Raises CheckpointError."""
        folder = folder_of(path, CONFIG, WEIGHTS)
        require_files(folder, CONFIG, WEIGHTS)
        weights = folder / WEIGHTS
        headers = read_headers(weights)
        for name in headers:
            if name.startswith(("W_decs", "post_enc")):
                raise CheckpointError(f"{weights} holds '{name}': it is {CROSS_LAYER}")
        spec = _configured(folder, has_skip=SKIP in headers)
        check_shapes(weights, headers, _shapes(spec, headers))
        return replace(spec, identity=fingerprint([folder / CONFIG, weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        import torch

        weights = spec.path / WEIGHTS
        tensors = read_tensors(weights, _shapes(spec, read_headers(weights)), device)
        b_dec_D = tensors["b_dec"]
        subtracts = _subtracts_b_dec(read_settings(spec.path / CONFIG))
        return Weights(
            w_enc_DF=tensors["encoder.weight"].T,
            b_enc_F=tensors["encoder.bias"],
            b_pre_D=b_dec_D if subtracts else torch.zeros_like(b_dec_D),
            w_dec_FO=tensors["W_dec"],
            b_dec_O=b_dec_D,
            w_skip_DO=tensors[SKIP].T if SKIP in tensors else None,
        )


def _shapes(spec: DictionarySpec, headers: Mapping[str, TensorHeader]) -> Shapes:
    d_in, width = ("d_in", spec.d_in), ("num_latents", spec.width)
    shapes = {
        "b_dec": (d_in,),
        "encoder.bias": (width,),
        "encoder.weight": (width, d_in),
        "W_dec": (width, d_in),
    }
    asked = read_settings(spec.path / CONFIG).flag("skip_connection", False)
    return shapes | ({SKIP: (d_in, d_in)} if asked or SKIP in headers else {})


def _configured(folder: Path, *, has_skip: bool) -> DictionarySpec:
    """What the JSON files say; the identity is left empty."""
    settings = read_settings(folder / CONFIG)
    run = _run_settings(folder)
    if settings.values.get("n_targets"):
        settings.refuse("n_targets", f"it is {CROSS_LAYER}")
    is_transcoder = _is_transcoder(settings, run, has_skip=has_skip)
    d_in = settings.count("d_in")
    width = settings.integer("num_latents", 0) or d_in * (
        settings.integer("expansion_factor", DEFAULT_EXPANSION) or DEFAULT_EXPANSION
    )
    if width < 1:
        raise CheckpointError(f"{settings.path}: num_latents and expansion_factor make {width} features.")
    k = settings.count("k")
    if k > width:
        raise CheckpointError(f"{settings.path}: k is {k}, more than the {width} features.")
    selector = _selector(settings, k, width)
    name = _hookpoint_folder(folder).name
    hook, hook_out = (f"{name}.input", f"{name}.output") if is_transcoder else (_hook(name), None)
    return DictionarySpec(
        format="sparsify",
        path=folder,
        identity="",
        d_in=d_in,
        width=width,
        selector=selector,
        k=k,
        hook=hook,
        site=site_of(hook),
        model=run.text("model"),
        corpus=run.text("dataset"),
        context_length=run.integer("ctx_len"),
        prepend_bos=False,
        hook_out=hook_out,
        site_out=None if hook_out is None else site_of(hook_out),
        d_out=d_in if is_transcoder else None,
        is_transcoder=is_transcoder,
        notes=(f"b_dec is {'' if _subtracts_b_dec(settings) else 'not '}subtracted",),
    )


def _selector(settings: Settings, k: int, width: int) -> Selector:
    activation = settings.text("activation") or "topk"
    if activation not in ACTIVATIONS:
        settings.refuse("activation", f"this is not read; these are: {', '.join(ACTIVATIONS)}.")
    if settings.flag("signed", False):
        if activation != "topk":
            settings.refuse("signed", f"with activation {activation} nobody knows what that means.")
        return "abstopk"
    if activation == "groupmax" and width % k:
        settings.refuse("k", f"{width} features don't make so many groups of equal size.")
    return ACTIVATIONS[activation]


def _is_transcoder(settings: Settings, run: Settings, *, has_skip: bool) -> bool:
    """Where cfg.json doesn't say (before February 2025), by the run's settings and the skip connection."""
    has_skip = has_skip or settings.flag("skip_connection", False)
    if settings.values.get("transcode") is None:
        places = (run, run.section("sae"))
        return has_skip or any(p.flag(key, False) for p in places for key in ("transcode", "skip_connection"))
    transcodes = settings.flag("transcode", False)
    if has_skip and not transcodes:
        settings.refuse("transcode", "but it has a skip connection, which is read for transcoders only.")
    return transcodes


def _subtracts_b_dec(settings: Settings) -> bool:
    """A transcoder whose own settings don't say that it is one is from when b_dec was subtracted always."""
    return not settings.flag("transcode", False)


def _hookpoint_folder(folder: Path) -> Path:
    """The folder whose name is the hook point. The path is made absolute: `.` has no name."""
    folder = folder.absolute()
    return folder.parent if SEED_FOLDER.fullmatch(folder.name) else folder


def _run_settings(folder: Path) -> Settings:
    """The run's config.json, above the hook point's folder; empty where there is none."""
    path = _hookpoint_folder(folder).parent / RUN_CONFIG
    return read_settings(path) if path.is_file() else Settings(path, {})


def _hook(name: str) -> str:
    """The folder's name with the side that it means: a path without one could pass for a canonical name,
    which in some families is another place (`layers.3.mlp` of a Gemma 2)."""
    early = LAYER_FOLDER.fullmatch(name)
    return f"layers.{early[1]}.in" if early else f"{name}.output"
