"""Temporal SAEs: conf.yaml and latest_ckpt.safetensors. Known, and not read.

Attention over the tokens before predicts a part of each token's vector, and only the rest of it is encoded, sparsely:

    x' = scaling_factor x - b; for each layer: z = relu(x' E / (4 d_in)), p = relu(attention(z shifted by one, z)) D,
    x' = x' - p (p . x') / |p|^2; the code is the top k of relu(x' E / (4 d_in))

An encoder here sees each token by itself, of a batch in which rows have lost their borders and their first and
masked tokens. A code that leaves the prediction out would be another dictionary's.

Sources: arXiv 2511.01836; decoderesearch/SAELens 6.54.12: saes/temporal_sae.py, loading/pretrained_sae_loaders.py
(canrager/temporalSAEs).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

from autointerp.dictionaries.checkpoint import folder_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import CheckpointError

CONFIG, WEIGHTS = "conf.yaml", "latest_ckpt.safetensors"


@dataclass(frozen=True, slots=True)
class Temporal:
    """Temporal SAEs: conf.yaml + latest_ckpt.safetensors; known, but refused: they need the tokens before."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        folder = folder_of(path, CONFIG, WEIGHTS)
        return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()

    def describe(self, path: Path) -> DictionarySpec:
        """Raises CheckpointError."""
        _refuse(path)

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Raises CheckpointError."""
        _refuse(spec.path)


def _refuse(path: Path) -> NoReturn:
    raise CheckpointError(
        f"{path} is a temporal SAE: what it encodes of a token is what attention over the tokens before does not "
        "predict, and here each token is encoded by itself. The way there is through files: compute with SAELens "
        "(architecture temporal) what is left of each vector when the prediction is subtracted, store that as a "
        "folder of activations, and read D and E from it as a topk dictionary (--activations FOLDER)."
    )
