"""Qwen-Scope (Alibaba): a file a layer, `layer12.sae.pt`, in a folder that names model, width and k.

    SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer12.sae.pt

W_enc is [F, D] and W_dec [D, F], the other way round than SAELens means by these names. Reads the output of
model.layers.N. TopK of x W_enc + b_enc, without a ReLU (model card; SAELens adds one): of the k largest a
negative one counts there, here it is silent, so that a feature has one direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import named, site_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

LAYOUT: Final = Layout("W_enc", "W_dec", "b_enc", "b_dec", linear=True)
FILE: Final = re.compile(r"layer(\d+)\.sae\.pt")
REPOSITORY: Final = r"SAE-Res-(?P<model>.+)-W\d+K-L0_(?P<k>\d+)"


@dataclass(frozen=True, slots=True)
class QwenScope:
    """Qwen-Scope (Alibaba): layerN.sae.pt in a folder SAE-Res-MODEL-WIDTH-L0_K; topk."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        return FILE.fullmatch(path.name) is not None and path.is_file()

    def describe(self, path: Path) -> DictionarySpec:
        """Reads names and headers. Raises CheckpointError."""
        headers = read_headers(path)
        d_in, width = LAYOUT.sizes(path, headers)
        repository, layer = named(path, REPOSITORY), named(path, FILE.pattern)
        if repository is None:
            raise CheckpointError(
                f"{path} doesn't say how many features fire on a token: that stands in the name of its repository. "
                "Put it in a folder named as that is, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50."
            )
        k = int(repository["k"])
        if not 1 <= k <= width:
            raise CheckpointError(f"{path}: its folder's name says L0 {k}, but it has {width} features.")
        hook = f"model.layers.{layer[1]}.output" if layer else None
        spec = DictionarySpec(
            format="qwen_scope",
            path=path,
            identity=fingerprint([path]),
            d_in=d_in,
            width=width,
            selector="topk",
            k=k,
            hook=hook,
            site=site_of(hook),
            model=f"Qwen/{repository['model']}" if repository["model"].startswith("Qwen") else None,
            corpus=None,
            context_length=None,
            prepend_bos=False,
            approximation="where one of a token's k largest pre-activations is negative, it is left out",
            notes=("b_dec is not subtracted", "no ReLU in training"),
        )
        check_shapes(path, headers, LAYOUT.shapes(spec))
        return spec

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the file is another than described."""
        return LAYOUT.weights(read_tensors(spec.path, LAYOUT.shapes(spec), device))
