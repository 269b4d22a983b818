"""sparsify checkpoints (EleutherAI): a folder a hook point, with cfg.json and sae.safetensors.

Source: EleutherAI/sparsify at 9d3b136: sparsify/sparse_coder.py, config.py, fused_encoder.py, data.py.

    relu((x - b_dec) @ encoder.weight.T + encoder.bias), then the k largest of each token

which is the k largest pre-activations, the positive ones of them. The folder's name is the module path
whose output is read (`layers.7`, `h.7.mlp`), a multi-seed run has `seedN` folders below it, and the
run's config.json lies above (model, dataset, ctx_len). Three things the files don't say:

- Contexts had no BOS: documents are joined by EOS and cut into `ctx_len` tokens (data.py).
- `layer_N` is how versions before July 2024 named the *input* of layer N: they took
  `hidden_states[N]` (2cc21c8:sae/trainer.py). It is not `layers.N`, the output of that layer.
- `signed` dictionaries (June to August 2024) select by absolute value; they are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, folder_of, read_settings, require_files
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

CONFIG, WEIGHTS, RUN_CONFIG = "cfg.json", "sae.safetensors", "config.json"

READ: Final = "Of sparsify's dictionaries, autoencoders with activation topk are read."
DEFAULT_EXPANSION: Final = 32

SEED_FOLDER = re.compile(r"seed\d+")
LAYER_FOLDER = re.compile(r"layer_(\d+)(?:\.pt)?")


@dataclass(frozen=True, slots=True)
class Sparsify:
    """sparsify (EleutherAI): cfg.json + sae.safetensors in a folder named after the module; topk."""

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
        spec = _configured(folder)
        weights = folder / WEIGHTS
        headers = read_headers(weights)
        for name in headers:
            if name == "W_skip" or name.startswith(("W_decs", "post_enc")):
                raise CheckpointError(f"{weights} holds '{name}': it is a transcoder. {READ}")
        check_shapes(weights, headers, _shapes(spec))
        return replace(spec, identity=fingerprint([folder / CONFIG, weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        tensors = read_tensors(spec.path / WEIGHTS, _shapes(spec), device)
        return Weights(
            w_enc_DF=tensors["encoder.weight"].T,
            b_enc_F=tensors["encoder.bias"],
            b_pre_D=tensors["b_dec"],
            w_dec_FO=tensors["W_dec"],
            b_dec_O=tensors["b_dec"],
            threshold_F=None,
        )


def _shapes(spec: DictionarySpec) -> Shapes:
    d_in, width = ("d_in", spec.d_in), ("num_latents", spec.width)
    return {
        "b_dec": (d_in,),
        "encoder.bias": (width,),
        "encoder.weight": (width, d_in),
        "W_dec": (width, d_in),
    }


def _configured(folder: Path) -> DictionarySpec:
    """What the JSON files say; the identity is left empty."""
    settings = read_settings(folder / CONFIG)
    run = _run_settings(folder)
    _refuse_what_is_not_read(settings, run)
    d_in = settings.count("d_in")
    width = settings.integer("num_latents", 0) or d_in * (
        settings.integer("expansion_factor", DEFAULT_EXPANSION) or DEFAULT_EXPANSION
    )
    if width < 1:
        raise CheckpointError(f"{settings.path}: num_latents and expansion_factor make {width} features.")
    k = settings.count("k")
    if k > width:
        raise CheckpointError(f"{settings.path}: k is {k}, more than the {width} features.")
    hook = _hook(_hookpoint_folder(folder).name)
    return DictionarySpec(
        format="sparsify",
        path=folder,
        identity="",
        d_in=d_in,
        width=width,
        selector="topk",
        k=k,
        hook=hook,
        site=site_of(hook),
        model=run.text("model"),
        corpus=run.text("dataset"),
        context_length=run.integer("ctx_len"),
        prepend_bos=False,
    )


def _refuse_what_is_not_read(settings: Settings, run: Settings) -> None:
    activation = settings.text("activation") or "topk"
    if activation != "topk":
        settings.refuse("activation", READ)
    if settings.flag("signed", False):
        settings.refuse("signed", f"it selects by absolute value. {READ}")
    for key in ("transcode", "skip_connection"):
        # Transcoders from before February 2025 say so only in the run's settings.
        for place in (settings, run, run.section("sae")):
            if place.flag(key, False):
                place.refuse(key, f"it is a transcoder. {READ}")
    if settings.values.get("n_targets"):
        settings.refuse("n_targets", f"it is a cross-layer transcoder (clt-training). {READ}")


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
