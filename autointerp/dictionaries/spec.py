"""What a dictionary is, whatever file it came from.

    x_ND -> pre_NF = (x - b_pre) @ W_enc + b_enc -> selector -> (token, feature, value)

A reader (`saelens.py`, `sparsify.py`, ...) turns a checkpoint into a `DictionarySpec` from headers and
JSON alone (`describe`, no torch, no weights read) and into `Weights` on demand (`load`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from autointerp.types import Site

if TYPE_CHECKING:
    from torch import Tensor

Selector = Literal["relu", "jumprelu", "topk"]
"""Which pre-activations become activations.
`relu`: the positive ones. `jumprelu`: those strictly above a threshold a feature, then the positive ones.
`topk`: of each token the k largest, then the positive ones of those."""


@dataclass(frozen=True, slots=True)
class DictionarySpec:
    """What is known of a dictionary without reading its weights."""

    format: str
    """Name of the reader."""
    path: Path
    """Local folder of the checkpoint."""
    identity: str
    """Fingerprint of configuration and weights; digested."""
    d_in: int
    width: int
    """Number of features F."""
    selector: Selector
    k: int | None
    """For topk: how many a token may have."""
    hook: str | None
    """The hook point as the checkpoint spells it (`blocks.3.hook_resid_post`, `layers.3.mlp.output`, ...);
    None if it doesn't say."""
    site: Site | None
    """The same, canonical; None if the checkpoint doesn't say, or in a name that `parse_hook` refuses."""
    model: str | None
    """Subject model (hub id or path) it was trained on; None if it doesn't say."""
    corpus: str | None
    """Dataset it was trained on; None if it doesn't say."""
    context_length: int | None
    """Tokens a context had in training, BOS included; None if it doesn't say."""
    prepend_bos: bool
    """Whether contexts began with BOS in training."""
    transform: Literal["none", "layer_norm", "constant_norm"] = "none"
    """What is done to the input first. `layer_norm`: each token centred and divided by its standard
    deviation (+1e-5). `constant_norm`: each token scaled to norm sqrt(d_in)."""
    decoder_norm_gate: bool = False
    """The selector sees pre-activations times the norm of the feature's decoder row."""

    @property
    def feature_sliceable(self) -> bool:
        """Whether a feature's activation is a function of its own column alone."""
        return self.selector in ("relu", "jumprelu")


@dataclass(frozen=True, slots=True)
class Weights:
    """A dictionary's tensors, float32, on one device. D = d_in, F = width."""

    w_enc_DF: Tensor
    b_enc_F: Tensor
    b_pre_D: Tensor
    """Subtracted from the (transformed) input before encoding; zeros where the format does not."""
    w_dec_FD: Tensor
    b_dec_D: Tensor
    """Added to the reconstruction."""
    threshold_F: Tensor | None
    """For jumprelu."""


class Reader(Protocol):
    """The plug-in for a checkpoint format."""

    version: ClassVar[str]

    def recognises(self, path: Path) -> bool:
        """Whether `path` (a local folder or file) looks like this format, from names and JSON alone."""
        ...

    def describe(self, path: Path) -> DictionarySpec:
        """Reads headers and configuration. Raises CheckpointError. Imports no torch."""
        ...

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors in float32. Raises CheckpointError. May import torch."""
        ...
