"""Gemma Scope 1 (Google DeepMind): a folder a dictionary, with params.npz and nothing else.

    gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz

Site, model and L0 stand in the names alone. JumpReLU; b_dec is not subtracted, nothing is scaled.

- `mlp` dictionaries read what the MLP adds to the stream, behind the norm that follows it; `att` ones the
  heads' outputs before W_O (z).
- `embedding` dictionaries were trained on rows of the embedding matrix; the model multiplies them by
  sqrt(d_in) before layer 0, so the reader divides again.
- transcoders read the MLP's input before the gain of its norm (the gain is folded into their model).

Sources: arXiv 2408.05147; SAELens at 91ca16c, sae_lens/loading/pretrained_sae_loaders.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import folder_of, require_files
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import named, site_of
from autointerp.dictionaries.spec import DictionarySpec, Expected, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

WEIGHTS: Final = "params.npz"
LAYOUTS: Final = (
    Layout("W_enc", "W_dec", "b_enc", "b_dec"),
    Layout("w_enc", "w_dec", "b_enc", "b_dec"),
)
HOOKS: Final = {
    "res": "blocks.{layer}.hook_resid_post",
    "mlp": "blocks.{layer}.hook_mlp_out",
    "att": "blocks.{layer}.attn.hook_z",
    "transcoders": "blocks.{layer}.ln2.hook_normalized",
}
REPOSITORY: Final = r"gemma-scope-(?P<size>\d+b)-(?P<kind>pt|it)-(?P<part>res|mlp|att|transcoders)\b"


@dataclass(frozen=True, slots=True)
class GemmaScope:
    """Gemma Scope 1 (Google DeepMind): params.npz; jumprelu, also transcoders."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        return (folder_of(path, WEIGHTS) / WEIGHTS).is_file()

    def describe(self, path: Path) -> DictionarySpec:
        """Reads names and headers. Raises CheckpointError."""
        folder = folder_of(path, WEIGHTS)
        require_files(folder, WEIGHTS)
        weights = folder / WEIGHTS
        headers = read_headers(weights)
        layout = _layout(headers)
        d_out, width = layout.sizes(weights, headers)
        spec = replace(_named(folder), d_in=d_out, width=width)
        check_shapes(weights, headers, _shapes(layout, spec))
        if "scaling_factor" in headers:
            raise CheckpointError(
                f"{weights} holds 'scaling_factor': the dictionary was fine-tuned to rescale its features, which "
                "is not read. Use the one from before that."
            )
        return replace(spec, identity=fingerprint([weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        path = spec.path / WEIGHTS
        layout = _layout(read_headers(path))
        tensors = read_tensors(path, _shapes(layout, spec), device)
        weights = replace(layout.weights(tensors), threshold_F=tensors["threshold"])
        if not _is_embedding(spec.path):
            return weights
        scale = spec.d_in**0.5
        return replace(
            weights,
            w_enc_DF=weights.w_enc_DF / scale,
            w_dec_FO=weights.w_dec_FO * scale,
            b_dec_O=weights.b_dec_O * scale,
        )


def _layout(names: object) -> Layout:
    upper, lower = LAYOUTS
    return lower if isinstance(names, dict) and lower.w_enc in names else upper


def _shapes(layout: Layout, spec: DictionarySpec) -> Shapes:
    return {**layout.shapes(spec), "threshold": (("features", spec.width),)}


def _is_embedding(folder: Path) -> bool:
    return named(folder, r"^embedding$") is not None


def _named(folder: Path) -> DictionarySpec:
    """What the names say; sizes and identity are left empty."""
    repository, layer = named(folder, REPOSITORY), named(folder, r"^layer_(\d+)$")
    part = repository["part"] if repository else None
    hook = HOOKS[part].format(layer=layer[1]) if part and layer else None
    notes = ["b_dec is not subtracted"]
    if _is_embedding(folder):
        hook = "blocks.0.hook_resid_pre"
        notes.append("trained on unscaled embeddings: the input is divided by sqrt(d_in)")
    if part == "transcoders":
        notes.append("reads the MLP's input before the norm's gain")
    hook_out = f"blocks.{layer[1]}.hook_mlp_out" if part == "transcoders" and layer else None
    model = None
    if repository:
        model = f"google/gemma-2-{repository['size']}" + ("-it" if repository["kind"] == "it" else "")
    l0 = named(folder, r"^average_l0_(\d+)$")
    return DictionarySpec(
        format="gemma_scope",
        path=folder,
        identity="",
        d_in=0,
        width=0,
        selector="jumprelu",
        k=None,
        hook=hook,
        site=site_of(hook),
        model=model,
        corpus=None,
        context_length=1024,
        prepend_bos=True,
        hook_out=hook_out,
        site_out=site_of(hook_out),
        d_out=None,
        is_transcoder=part == "transcoders",
        expected=Expected(l0=float(l0[1]) if l0 else None),
        notes=tuple(notes),
    )
