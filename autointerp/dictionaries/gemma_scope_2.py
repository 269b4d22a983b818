"""Gemma Scope 2 (Google DeepMind), on Gemma 3: params.safetensors with lower-case names.

    gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium/{config.json, params.safetensors}
    gemma-scope-2-1b-pt/clt/width_262k_l0_medium/params_layer_3.safetensors    a layer of a CLT: a file

JumpReLU on raw activations. Without config.json the folder's name says which place is meant. `attn_out`
dictionaries read z, the input of o_proj; transcoders read the MLP's input behind the norm's gain. One layer of
a cross-layer transcoder writes to several layers: w_dec [F, layers, D], of which the sum is taken.

Source: SAELens at 91ca16c, sae_lens/loading/pretrained_sae_loaders.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, read_settings
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import named, site_of
from autointerp.dictionaries.spec import DictionarySpec, Expected, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

CONFIG, WEIGHTS = "config.json", "params.safetensors"
LAYOUT: Final = Layout("w_enc", "w_dec", "b_enc", "b_dec")
SKIP: Final = "affine_skip_connection"

PLACES: Final = {
    "resid_post": ("model.layers.{layer}.output", None),
    "attn_out": ("model.layers.{layer}.self_attn.o_proj.input", None),
    "mlp_out": ("model.layers.{layer}.post_feedforward_layernorm.output", None),
    "transcoder": (
        "model.layers.{layer}.pre_feedforward_layernorm.output",
        "model.layers.{layer}.post_feedforward_layernorm.output",
    ),
}
"""What a folder's name means: (input, output)."""
PLACE: Final = r"^(?P<place>resid_post|attn_out|mlp_out|transcoder|clt)(_all)?$"


@dataclass(frozen=True, slots=True)
class GemmaScope2:
    """Gemma Scope 2 (Google DeepMind): params.safetensors; jumprelu, also transcoders and layers of CLTs."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        weights = _weights(path)
        if not weights.is_file() or weights.suffix != ".safetensors":
            return False
        try:
            headers = read_headers(weights)
        except CheckpointError:
            return weights.name == WEIGHTS
        is_folder = weights.name == WEIGHTS and LAYOUT.w_enc in headers
        return is_folder or headers.keys() >= {*LAYOUT.names, "threshold"}

    def describe(self, path: Path) -> DictionarySpec:
        """Reads config.json, if there is one, names and headers. Raises CheckpointError."""
        weights = _weights(path)
        headers = read_headers(weights)
        config = weights.parent / CONFIG
        settings = read_settings(config) if config.is_file() else Settings(config, {})
        if (architecture := settings.text("architecture")) not in (None, "jump_relu"):
            settings.refuse("architecture", f"only jump_relu is read, not {architecture}.")
        spec = _configured(weights if weights.name != WEIGHTS else weights.parent, settings)
        d_out, width = LAYOUT.sizes(weights, headers)
        d_in = _d_in(headers, d_out) if spec.is_transcoder else d_out
        is_layer = len(headers[LAYOUT.w_dec].shape) == 3 if LAYOUT.w_dec in headers else False
        spec = replace(spec, d_in=d_in, width=width, d_out=d_out if spec.is_transcoder else None)
        if is_layer:
            spec = replace(
                spec,
                is_transcoder=True,
                d_out=d_out,
                reconstructs=False,
                writes_to="the MLP outputs of its own and later layers",
                notes=(*spec.notes, "directions are sums over the places written to"),
            )
        if SKIP in headers and not spec.is_transcoder:
            raise CheckpointError(
                f"{weights} holds '{SKIP}', so it is a transcoder, but is not named as one."
            )
        check_shapes(weights, headers, _shapes(spec, headers))
        files = [file for file in (config, weights) if file.is_file()]
        return replace(spec, identity=fingerprint(files))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        path = _weights(spec.path)
        tensors = read_tensors(path, _shapes(spec, read_headers(path)), device)
        if not spec.reconstructs:
            tensors[LAYOUT.w_dec] = tensors[LAYOUT.w_dec].sum(dim=1)
        weights = LAYOUT.weights(tensors)
        return replace(weights, threshold_F=tensors["threshold"], w_skip_DO=tensors.get(SKIP))


def _weights(path: Path) -> Path:
    """A folder's file of weights; of a CLT each file is a dictionary."""
    return path.parent / WEIGHTS if path.name == CONFIG else path / WEIGHTS if path.is_dir() else path


def _d_in(headers: Mapping[str, TensorHeader], d_out: int) -> int:
    """The input of a transcoder can be of another size than what b_dec belongs to."""
    shape = headers[LAYOUT.w_enc].shape if LAYOUT.w_enc in headers else ()
    return shape[0] if len(shape) == 2 else d_out


def _shapes(spec: DictionarySpec, headers: Mapping[str, TensorHeader]) -> Shapes:
    shapes = {**LAYOUT.shapes(spec), "threshold": (("features", spec.width),)}
    d_out = ("d_out", spec.d_out or spec.d_in)
    if not spec.reconstructs:
        shape = headers[LAYOUT.w_dec].shape if LAYOUT.w_dec in headers else ()
        n_layers = shape[1] if len(shape) == 3 else 0
        shapes[LAYOUT.w_dec] = (("features", spec.width), ("layers", n_layers), d_out)
    if SKIP in headers:
        shapes[SKIP] = (("d_in", spec.d_in), d_out)
    return shapes


def _configured(path: Path, settings: Settings) -> DictionarySpec:
    """What config.json and the names say; sizes and identity are left empty."""
    place, layer = named(path, PLACE), named(path, r"(?:^|_)layer_(\d+)(?:_|\.|$)")
    kind = "transcoder" if place and place["place"] == "clt" else place["place"] if place else None
    hooks = PLACES[kind] if kind and layer else (None, None)
    hook, hook_out = (hook.format(layer=layer[1]) if hook and layer else None for hook in hooks)
    hook, hook_out = settings.text("hf_hook_point_in") or hook, settings.text("hf_hook_point_out") or hook_out
    is_transcoder = hook_out is not None and hook_out != hook
    return DictionarySpec(
        format="gemma_scope_2",
        path=path,
        identity="",
        d_in=0,
        width=0,
        selector="jumprelu",
        k=None,
        hook=hook,
        site=site_of(hook),
        model=_model(path, settings.text("model_name")),
        corpus=None,
        context_length=1024,
        prepend_bos=True,
        hook_out=hook_out if is_transcoder else None,
        site_out=site_of(hook_out) if is_transcoder else None,
        is_transcoder=is_transcoder,
        expected=Expected(l0=_number(settings.values.get("l0"))),
        notes=("b_dec is not subtracted",),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _model(path: Path, name: str | None) -> str | None:
    """`gemma-v3-1b-pt` is google/gemma-3-1b-pt on the hub; the base model of 270m has no `-pt`."""
    if name is None:
        repository = named(path, r"gemma-scope-2-(\d+[mb]-(?:pt|it))")
        if repository is None:
            return None
        name = f"gemma-3-{repository[1]}"
    name = name.removeprefix("google/").replace("gemma-v3", "gemma-3")
    return "google/" + ("gemma-3-270m" if name == "gemma-3-270m-pt" else name)
