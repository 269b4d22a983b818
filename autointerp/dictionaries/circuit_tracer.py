"""circuit-tracer's transcoders: a file a layer, with config.yaml beside it or one folder up.

Source: circuit-tracer 0.5.0: transcoder/single_layer_transcoder.py, cross_layer_transcoder.py.

    layer_N.safetensors                  W_enc [F, D], W_dec [F, D], b_enc, b_dec, perhaps
                                         activation_function.threshold [F] and W_skip [D out, D in]
    W_enc_N.safetensors, W_dec_N....     one layer of a cross-layer transcoder: W_enc_N [F, D], b_enc_N, b_dec_N,
                                         perhaps threshold_N [F]; W_dec_N [F, targets, D], layer N first

    relu(W_enc @ x + b_enc), or what is above the threshold; b_dec is not subtracted

A dictionary is one layer and named by its file. What a cross-layer transcoder predicts is a sum over the
layers before, so that one layer alone reconstructs nothing; a feature's direction is here the sum of its
directions over the layers that it writes to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, listed, read_settings, shortened
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_slice, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "config.yaml"
FILE = re.compile(r"(?:(?P<own>layer)|(?P<cross>W_enc))_(?P<layer>\d{1,4})\.safetensors")
LOGS: Final = "log_thresholds"


@dataclass(frozen=True, slots=True)
class Names:
    """What the tensors of one layer are called."""

    w_enc: str
    w_dec: str
    b_enc: str
    b_dec: str
    threshold: str
    skip: str | None


@dataclass(frozen=True, slots=True)
class CircuitTracer:
    """circuit-tracer: layer_N.safetensors, or W_enc_N and W_dec_N.safetensors; transcoders, named by a file."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        if FILE.fullmatch(path.name) is None or not path.is_file():
            return False
        names = _names(path)
        try:
            return {names.w_enc, names.b_enc, names.b_dec} <= read_headers(path).keys()
        except CheckpointError:
            return False

    def describe(self, path: Path) -> DictionarySpec:
        """Reads config.yaml and the headers of the weights. Raises CheckpointError."""
        headers, names = _headers(path), _names(path)
        if LOGS in headers:
            raise CheckpointError(f"{path} holds '{LOGS}', which nobody says how to read. Store thresholds.")
        width, d_model = _length(path, headers, names.b_enc), _length(path, headers, names.b_dec)
        layer, crosses = _layer(path), names.skip is None
        config = _config(path)
        hook = _hook(config, "feature_input_hook", layer)
        spec = DictionarySpec(
            format="circuit_tracer",
            path=path,
            identity="",
            d_in=d_model,
            width=width,
            selector="jumprelu" if names.threshold in headers else "relu",
            k=None,
            hook=hook,
            site=site_of(hook),
            model=config.text("model_name"),
            corpus=None,
            context_length=None,
            prepend_bos=True,
            hook_out=(hook_out := None if crosses else _hook(config, "feature_output_hook", layer)),
            site_out=site_of(hook_out),
            d_out=d_model,
            is_transcoder=True,
            reconstructs=not crosses,
            notes=("b_dec is not subtracted", "circuit-tracer takes the first token for silent"),
        )
        check_shapes(path, headers, _shapes(spec, headers))
        files = [path]
        if crosses:
            files.append(_decoder_file(path))
            last, output = layer + _n_targets(spec) - 1, config.text("feature_output_hook")
            writes_to = f"the MLP outputs of layers {layer} to {last}" + (f" ({output})" if output else "")
            notes = (*spec.notes, "directions are sums over the places written to")
            spec = replace(spec, writes_to=writes_to, notes=notes)
        return replace(spec, identity=fingerprint(files))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        import torch

        names, headers = _names(spec.path), _headers(spec.path)
        tensors = read_tensors(spec.path, _shapes(spec, headers), device)
        skip = None if names.skip is None else tensors.get(names.skip)
        return Weights(
            w_enc_DF=tensors[names.w_enc].T,
            b_enc_F=tensors[names.b_enc],
            b_pre_D=torch.zeros_like(tensors[names.b_dec]),
            w_dec_FO=tensors[names.w_dec] if spec.reconstructs else _summed_decoder(spec, device),
            b_dec_O=tensors[names.b_dec],
            threshold_F=tensors.get(names.threshold),
            w_skip_DO=None if skip is None else skip.T,
        )


def _layer(path: Path) -> int:
    match = FILE.fullmatch(path.name)
    if match is None:
        raise CheckpointError(
            f"{path}: give a file layer_N.safetensors or W_enc_N.safetensors, a layer each."
        )
    return int(match["layer"])


def _names(path: Path) -> Names:
    if path.name.startswith("layer"):
        return Names("W_enc", "W_dec", "b_enc", "b_dec", "activation_function.threshold", "W_skip")
    # The number as the file spells it.
    n = path.stem.rpartition("_")[2]
    return Names(f"W_enc_{n}", f"W_dec_{n}", f"b_enc_{n}", f"b_dec_{n}", f"threshold_{n}", None)


def _headers(path: Path) -> dict[str, TensorHeader]:
    _layer(path)  # raises for another file
    return read_headers(path)


def _length(path: Path, headers: Mapping[str, TensorHeader], bias: str) -> int:
    """Biases say which axis is which: nothing else here does."""
    found = headers.get(bias)
    if found is None:
        raise CheckpointError(f"{path} has no tensor '{bias}'. It has: {listed(dict(headers))}.")
    if len(found.shape) != 1 or not found.shape[0]:
        raise CheckpointError(
            f"{path}: '{bias}' has shape {shortened(list(found.shape))}, which no bias has."
        )
    return found.shape[0]


def _shapes(spec: DictionarySpec, headers: Mapping[str, TensorHeader]) -> Shapes:
    names = _names(spec.path)
    width, d_model = ("features", spec.width), ("d_model", spec.d_in)
    shapes: dict[str, tuple[tuple[str, int], ...]] = {names.b_dec: (d_model,), names.b_enc: (width,)}
    shapes[names.w_enc] = (width, d_model)
    if spec.reconstructs:
        shapes[names.w_dec] = (width, d_model)
    if names.threshold in headers:
        shapes[names.threshold] = (width,)
    if names.skip is not None and names.skip in headers:
        shapes[names.skip] = (d_model, d_model)
    return shapes


# --- configuration -------------------------------------------------------------------------------------


def _config(path: Path) -> Settings:
    """config.yaml; empty where there is none."""
    places = (path.with_name(CONFIG), path.parent.parent / CONFIG)
    found = next((place for place in places if place.is_file()), None)
    return Settings(places[0], {}) if found is None else read_settings(found)


def _hook(config: Settings, key: str, layer: int) -> str | None:
    """`mlp.hook_in` is relative to the layer."""
    name = config.text(key)
    return None if name is None else f"blocks.{layer}.{name}"


# --- the decoder of a cross-layer transcoder -----------------------------------------------------------


def _decoder_file(path: Path) -> Path:
    return path.with_name(path.name.replace("W_enc", "W_dec"))


def _n_targets(spec: DictionarySpec) -> int:
    """How many layers this one writes to. Raises CheckpointError for a decoder that doesn't fit."""
    path, name = _decoder_file(spec.path), _names(spec.path).w_dec
    headers = read_headers(path)
    shape = headers[name].shape if name in headers else ()
    n_targets = shape[1] if len(shape) == 3 else 1
    axes = (("features", spec.width), ("layers", max(1, n_targets)), ("d_model", spec.d_in))
    check_shapes(path, headers, {name: axes})
    return n_targets


def _summed_decoder(spec: DictionarySpec, device: str) -> Tensor:
    """[F, D], one target at a time: all of them can be tens of gigabytes. Raises CheckpointError."""
    import torch

    path, name = _decoder_file(spec.path), _names(spec.path).w_dec
    total_FD = torch.zeros(spec.width, spec.d_in, device=device)
    for target in range(_n_targets(spec)):
        total_FD += read_slice(path, name, (slice(None), target), device)
    return total_FD
