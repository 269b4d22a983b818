"""What a dictionary is, whatever file it came from.

    x_ND -> T(x) -> pre_NF = (T(x) - b_pre) @ W_enc + b_enc -> score_NF = pre * s -> selector
         -> (token, feature, value)

A reader (`saelens.py`, `sparsify.py`, ...) turns a checkpoint into a `DictionarySpec` from headers and
JSON alone (`describe`, no torch, no weights read) and into `Weights` on demand (`load`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Protocol

from autointerp.dictionaries.steps import ALL_STEPS, Pursuit
from autointerp.dictionaries.thresholds import Calibration
from autointerp.types import Site

if TYPE_CHECKING:
    from torch import Tensor

Selector = Literal[
    "relu", "jumprelu", "gated", "topk", "abstopk", "groupmax", "top_afa", "pursuit", "nnls", "custom"
]
"""Which pre-activations become activations.
`relu`: the positive ones. `jumprelu`: those strictly above a threshold a feature, then the positive ones.
`gated`: where one affine map of x W_enc is positive, another one, rectified (arXiv 2404.16014).
`topk`: of each token the k largest, then the positive ones of those. `abstopk`: the k largest by magnitude,
signs kept. `groupmax`: features stand in k groups of equal size, in order; of each group the largest, then
the positive ones. `top_afa`: of each token the largest, as many as bring the root of the sum of their squared
scores nearest to the norm of the input minus b_pre (arXiv 2503.24277). `pursuit`: matching pursuit with the decoder
rows as atoms, see `Pursuit`. `nnls`: the non-negative codes that reconstruct the input best, without a bound on
their number (arXiv 2506.10920). `custom`: what `Weights.encode` says."""

Transform = Literal["centre", "layer_norm", "constant_norm"]
"""A step that the input takes before the encoder, token by token; what is linear and the same for all tokens
(a constant scale, a fixed shift) a reader folds into the weights instead.
`centre`: the mean over D is subtracted (TransformerLens' center_writing_weights). `layer_norm`: centred and
divided by the (unbiased) standard deviation + 1e-5. `constant_norm`: scaled to norm sqrt(d_in)."""

ELEMENTWISE: Final[frozenset[Selector]] = frozenset({"relu", "jumprelu", "gated"})
BY_DECODER: Final[frozenset[Selector]] = frozenset({"pursuit", "nnls"})
"""Codes are found with the decoder alone: there is no encoder, and `w_enc_DF` is None."""


BASIS_SHARE: Final = 64
"""Of raw neurons a token keeps one in so many, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the checkpoint, or the release it belongs to, says a dictionary does."""

    l0: float | None = None
    """Features that fire on a token."""
    fvu: float | None = None
    """Share of variance not explained."""


@dataclass(frozen=True, slots=True)
class DictionarySpec:
    """What is known of a dictionary without reading its weights."""

    format: str
    """Name of the reader."""
    path: Path
    """Local folder or file of the checkpoint."""
    identity: str
    """Fingerprint of configuration and weights; digested."""
    d_in: int
    """0 where it takes vectors of any length, until the model is known (`sized`)."""
    width: int
    """Number of features F."""
    selector: Selector
    k: int | None
    """For topk and abstopk: how many a token may have. For groupmax: the number of groups. For pursuit: the
    number of steps."""
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
    further_sites: tuple[Site, ...] = ()
    """Of a crosscoder: whose vectors are appended to those of `site`, in this order; `d_in` is the sum."""
    hook_out: str | None = None
    """For a transcoder: the hook point that it predicts, as the checkpoint spells it."""
    site_out: Site | None = None
    """The same, canonical. With `is_transcoder` and None, nobody knows what the output is compared with."""
    d_out: int | None = None
    """For a transcoder: length of what it predicts."""
    is_transcoder: bool = False
    """The decoder writes to another place than the encoder reads."""
    writes_to: str | None = None
    """Of a layer of a cross-layer transcoder: the places that it adds to, in words. What each of them holds is a sum
    over such layers."""
    transform: tuple[Transform, ...] = ()
    """What is done to the input first, in this order."""
    input_factor: float | None = 1.0
    """What the stored weights expect inputs to be multiplied with, which `load` folds in. None: by something that is
    not in the files, so that they can't be used; SAELens' list may say it (`registry.py`)."""
    model_was_centred: bool = False
    """In training TransformerLens' `center_writing_weights` centred what is written to the residual stream of models
    with LayerNorm, no others': where the model is one, `centre` is put in front of `transform` (centring.py)."""
    centring_is_default: bool = False
    """Its library centred by default, its files don't say it: where a model's norm is unknown, nothing is centred."""
    normalized_behind_gain: bool = False
    """Its `hook_normalized` was TransformerLens' before version 3, without `fold_ln`: of a LayerNorm behind gain and
    bias, which a site of that name is not, so that it reads there (places.py); of an RMSNorm in front of the gain."""
    without_value_bias: bool = False
    """Of a dictionary of z: trained where TransformerLens' `fold_value_biases` had taken out of z what biases add to
    it; where the model is here it is taken out again (stages/loading.py)."""
    decoder_norm_gate: bool = False
    """The selector sees scores: pre-activations times the norm of its decoder row (`Weights.score_norms`)."""
    value_is_score: bool = True
    """With `decoder_norm_gate`: whether a feature's activation is its score (SAELens), or the pre-activation
    again (Llamascopium)."""
    reconstructs: bool = True
    """Whether decoding its codes alone gives what it was trained to give; not so for one layer of a
    cross-layer transcoder."""
    pursuit: Pursuit = ALL_STEPS
    """For pursuit."""
    n_inputs: int = 1
    """Of a crosscoder: so many vectors of one length stand one behind the other in what it reads; `transform` takes
    each by itself."""
    by_input: bool = False
    """Of a crosscoder: each input selects by itself (`Weights.input_share_LF`). A feature fires where it does for
    any input, and adds its decoder row's part for those inputs alone. Scores have a `decoder_norm_gate`."""
    n_models: int = 1
    """Of a crosscoder of several models: whose vectors at `site` are read, one behind the other, `d_in` in all. A
    run has one model, so that more than one are read from files only."""
    group_sizes: tuple[int, ...] = ()
    """For a Matryoshka dictionary: how many features its levels add, the coarsest first."""
    expected: Expected = Expected()
    calibration: Calibration | None = None
    """For a jumprelu dictionary that stores no threshold: how a run finds it."""
    basis: Literal["neurons", "experts"] | None = None
    """The features are the coordinates of such a site: no weights, and `d_in` and `width` are 0 until the model
    is known (`sized`). None for a dictionary that was trained."""
    custom_code: str | None = None
    """For custom: what its codes are, in words."""
    has_signs: bool = False
    """For custom and pursuit: activations may be negative, and in pursuit the largest product is that by
    magnitude."""
    needs_sequence: bool = False
    """What the tokens before a token predict of its vector is subtracted first (`Weights.predict`), so that its code
    depends on these, and on them alone: encoding takes whole rows."""
    gradient_weight: float | None = None
    """Of a gradient SAE, a topk that chooses by effect on the model's loss, too: what the effect counts
    (`by_gradient.py`). Codes depend on the tokens behind, and encoding takes gradients. None: by activation alone."""
    approximation: str | None = None
    """What is left out against the dictionary as trained; None if nothing."""
    notes: tuple[str, ...] = ()
    """Conventions of the format that decide what an activation is, for `sae inspect`: `b_dec is subtracted`."""

    @property
    def signed(self) -> bool:
        """Whether activations have signs; then each feature has two poles, explained apart."""
        return self.selector == "abstopk" or (self.selector in ("custom", "pursuit") and self.has_signs)

    @property
    def is_basis(self) -> bool:
        return self.basis is not None

    @property
    def needs_gradient(self) -> bool:
        return self.gradient_weight is not None

    @property
    def is_sized(self) -> bool:
        """Whether it is known how long the vectors are that it reads."""
        return self.d_in > 0

    @property
    def n_poles(self) -> int:
        return 2 if self.signed else 1

    @property
    def n_columns(self) -> int:
        """Features, poles counted apart."""
        return self.width * self.n_poles

    @property
    def feature_sliceable(self) -> bool:
        """Whether a feature's activation is a function of its own column alone."""
        return self.selector in ELEMENTWISE and not self.is_basis

    def sized(self, width: int) -> DictionarySpec:
        """One that takes vectors of any length, for a site of so many coordinates; any other as it is."""
        if self.is_sized:
            return self
        if not self.is_basis:
            return dataclasses.replace(self, d_in=width)
        k = None if self.selector == "relu" else min(self.k or max(1, width // BASIS_SHARE), width)
        return dataclasses.replace(self, d_in=width, width=width, k=k)


if TYPE_CHECKING:
    Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
    """Of n tokens' (transformed) input [n, D], float32: values and features [n, K]; 0 is not active, and what
    is stands once. A token's codes may not depend on the other tokens."""
    Predict = Callable[[Tensor], Tensor]
    """Of one row's vectors [T, D], float32, from its first token on: what of each the tokens before it predict,
    [T, D]. The last of a row never change what comes out for the first."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The two affine maps of a gated dictionary, [F] each: a feature fires where x W_enc + bias > 0, and is
    relu(x W_enc * scale + magnitude_bias) there."""

    bias_F: Tensor
    scale_F: Tensor
    magnitude_bias_F: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """A dictionary's tensors, float32, on one device. D = d_in, F = width, O = d_out (D but in transcoders)."""

    w_enc_DF: Tensor | None
    """None: the identity (a basis), custom, or codes that are found `BY_DECODER`."""
    b_enc_F: Tensor
    """Unused where there is a gate, or no encoder."""
    b_pre_D: Tensor
    """Subtracted from the (transformed) input before encoding; zeros where the format does not."""
    w_dec_FO: Tensor | None
    """None: the identity (a basis)."""
    b_dec_O: Tensor
    """Added to the reconstruction."""
    threshold_F: Tensor | None = None
    """For jumprelu; compared with the score where there is a `decoder_norm_gate`. None before a run has
    calibrated it."""
    score_norm_F: Tensor | None = None
    """With a `decoder_norm_gate`: what pre-activations are multiplied with, where that is another norm than that of
    the rows in `w_dec_FO`."""
    input_share_LF: Tensor | None = None
    """For `by_input`, L inputs: `score_norms` times this is what a pre-activation is multiplied with to be an input's
    score; the largest of a feature is 1."""
    gate: Gate | None = None
    """For gated."""
    w_skip_DO: Tensor | None = None
    """Of a transcoder: the (untransformed) input times this is added to the output."""
    encode: Encode | None = None
    """For custom."""
    predict: Predict | None = None
    """For `needs_sequence`. Codes are of what it leaves, and it is added to the reconstruction."""

    @property
    def encoder(self) -> Tensor:
        """`w_enc_DF`, where there is one."""
        assert self.w_enc_DF is not None
        return self.w_enc_DF

    @property
    def decoder(self) -> Tensor:
        """`w_dec_FO`, where there is one."""
        assert self.w_dec_FO is not None
        return self.w_dec_FO

    @property
    def score_norms(self) -> Tensor:
        """[F], for a `decoder_norm_gate`."""
        return self.decoder.norm(dim=1) if self.score_norm_F is None else self.score_norm_F

    def directions(self, features: Sequence[int]) -> Tensor:
        """Decoder rows [Q, O]."""
        if self.w_dec_FO is not None:
            return self.w_dec_FO[list(features)]
        rows_QO = self.b_dec_O.new_zeros(len(features), len(self.b_dec_O))
        rows_QO[range(len(features)), list(features)] = 1
        return rows_QO


@dataclass(frozen=True, slots=True)
class Dictionary:
    """What a function outside of this package gives for `--sae package.module:function`."""

    spec: DictionarySpec
    """`path` and `format` are filled in; an empty `identity` becomes that of the function's file, so say one
    that changes with the weights."""
    load: Callable[[str], Weights]
    """Device -> the tensors."""


class Reader(Protocol):
    """The plug-in for a checkpoint format."""

    version: ClassVar[str]  # of the rules by which the same files give activations; digested from 2 on

    def recognises(self, path: Path) -> bool:
        """Whether `path` (a local folder or file) looks like this format, from names, JSON and tensors' names
        alone. A folder of many dictionaries is none."""
        ...

    def describe(self, path: Path) -> DictionarySpec:
        """Reads headers and configuration. Raises CheckpointError. Imports no torch."""
        ...

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors in float32. Raises CheckpointError. May import torch."""
        ...
