"""A file with the four usual tensors and nothing that says whose it is: releases of single researchers.

    W_enc, b_enc, W_dec, b_dec [, threshold]      .pt, .pth, .npz or .safetensors

W_enc may be [D, F] or [F, D]: the biases tell, and where both are as long, W_enc is taken as [D, F]. Such files
say nothing of their conventions, so the commonest is taken: relu (with thresholds jumprelu), b_dec subtracted
(arXiv 2309.08600; the SAE tutorials that such files come from). `autointerp sae check` tells whether another fits
better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import KINDS, Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

LAYOUT: Final = Layout("W_enc", "W_dec", "b_enc", "b_dec")
THRESHOLD: Final = "threshold"


@dataclass(frozen=True, slots=True)
class StateDict:
    """A lone file with W_enc, b_enc, W_dec and b_dec, of nobody known: relu, or jumprelu with thresholds."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        if path.suffix not in KINDS or not path.is_file():
            return False
        try:
            return frozenset(read_headers(path)) - {THRESHOLD} == LAYOUT.names
        except CheckpointError:
            return False

    def describe(self, path: Path) -> DictionarySpec:
        """Reads headers. Raises CheckpointError."""
        headers = read_headers(path)
        d_in, width = LAYOUT.sizes(path, headers)
        spec = DictionarySpec(
            format="state_dict",
            path=path,
            identity=fingerprint([path]),
            d_in=d_in,
            width=width,
            selector="jumprelu" if THRESHOLD in headers else "relu",
            k=None,
            hook=None,
            site=None,
            model=None,
            corpus=None,
            context_length=None,
            prepend_bos=True,
            notes=("b_dec is subtracted, as is usual: the file doesn't say (see autointerp sae check)",),
        )
        check_shapes(path, headers, _shapes(spec, headers))
        return spec

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the file is another than described."""
        headers = read_headers(spec.path)
        tensors = read_tensors(spec.path, _shapes(spec, headers), device)
        weights = _layout(spec, headers).weights(tensors)
        return replace(weights, b_pre_D=weights.b_dec_O, threshold_F=tensors.get(THRESHOLD))


def _layout(spec: DictionarySpec, headers: Mapping[str, TensorHeader]) -> Layout:
    stored = headers[LAYOUT.w_enc].shape if LAYOUT.w_enc in headers else ()
    return replace(LAYOUT, linear=spec.d_in != spec.width and stored == (spec.width, spec.d_in))


def _shapes(spec: DictionarySpec, headers: Mapping[str, TensorHeader]) -> Shapes:
    shapes = dict(_layout(spec, headers).shapes(spec))
    return shapes | ({THRESHOLD: (("features", spec.width),)} if spec.selector == "jumprelu" else {})
