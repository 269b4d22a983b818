"""Goodfire's dictionaries on Llama 3, and qresearch's on DeepSeek-R1: one .pt or .pth file.

    Llama-3.3-70B-Instruct-SAE-l50.pt         encoder_linear.weight, ...
    DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt   encoder.weight, ...

ReLU on the residual stream behind the layer that the file's name says; b_dec is not subtracted. Model and
layer stand in the name alone.

Source: SAELens at 91ca16c, sae_lens/loading/pretrained_sae_loaders.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import PICKLED, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

LAYOUTS: Final = tuple(
    Layout(
        f"encoder{suffix}.weight",
        f"decoder{suffix}.weight",
        f"encoder{suffix}.bias",
        f"decoder{suffix}.bias",
        linear=True,
    )
    for suffix in ("_linear", "")
)
FILE: Final = re.compile(r"(?P<model>.+)-SAE-l(?P<layer>\d+)")
OWNERS: Final = {"Llama-": "meta-llama", "DeepSeek-": "deepseek-ai"}


@dataclass(frozen=True, slots=True)
class Goodfire:
    """Goodfire and qresearch: one file MODEL-SAE-lN.pt; relu."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        # dictionary_learning's AutoEncoderNew has the same names, always in a file ae.pt.
        if path.suffix not in PICKLED or path.name == "ae.pt" or not path.is_file():
            return False
        try:
            return _layout(read_headers(path)) is not None
        except CheckpointError:
            return False

    def describe(self, path: Path) -> DictionarySpec:
        """Reads names and headers. Raises CheckpointError."""
        headers = read_headers(path)
        layout = _layout(headers) or LAYOUTS[0]
        d_in, width = layout.sizes(path, headers)
        name = FILE.fullmatch(path.stem)
        hook = f"blocks.{name['layer']}.hook_resid_post" if name else None
        spec = DictionarySpec(
            format="goodfire",
            path=path,
            identity=fingerprint([path]),
            d_in=d_in,
            width=width,
            selector="relu",
            k=None,
            hook=hook,
            site=site_of(hook),
            model=_model(name["model"]) if name else None,
            corpus=None,
            context_length=None,
            prepend_bos=True,
            notes=("b_dec is not subtracted",),
        )
        check_shapes(path, headers, layout.shapes(spec))
        return spec

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the file is another than described."""
        layout = _layout(read_headers(spec.path)) or LAYOUTS[0]
        return layout.weights(read_tensors(spec.path, layout.shapes(spec), device))


def _layout(headers: Mapping[str, TensorHeader]) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.names == frozenset(headers)), None)


def _model(name: str) -> str | None:
    owner = next((owner for prefix, owner in OWNERS.items() if name.startswith(prefix)), None)
    return f"{owner}/{name}" if owner else None
