"""Crosscoders of dictionary_learning's fork by Julian Minder and Clement Dumas (files and normaliser:
`minder_files.py`).

    encoder.weight [L, D, F], encoder.bias [F]      f = relu(sum over inputs of x_l encoder.weight[l] + encoder.bias)
    decoder.weight [L, F, D], decoder.bias [L, D]   x_hat_l = f decoder.weight[l] + decoder.bias[l]
    threshold []                                    batch-top-k: f where f times its norm is above it
    threshold [L]                                   decoupled: for input l f where f times its norm there is above it

A feature's norm (`code_normalization_id`): 1 sum over inputs of the norms of its decoder rows, 2 norm of these rows
as one, 3 both, weighted, 4 one, 5 (decoupled) the norm of each row for its input. f is its activation, as `encode`
gives it; `get_activations` multiplies by the norm. Decoupled, f is added to the inputs that pass, and is a feature's
activation where any does; there inputs are normalised twice, in training and after, because `encode` does it and what
it calls does it again.

The L inputs are sites of one model or one site of several; which, no file says.

Sources: science-of-finetuning/dictionary_learning (jkminder's): dictionary.py; arXiv 2504.02922.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, shortened
from autointerp.dictionaries.minder_files import Normaliser, Stored
from autointerp.dictionaries.spec import DictionarySpec, Expected, Weights
from autointerp.dictionaries.tensors import KINDS, Shapes, check_shapes
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD, NORM_ID = "threshold", "code_normalization_id"
NORMS: Final = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
OPEN: Final = 1e20
"""Norm over threshold of an input that takes every f above 0, so far as float32 tells."""


@dataclass(frozen=True, slots=True)
class Crosscoder:
    """Crosscoders of jkminder's dictionary_learning: model.safetensors or .pt; relu, or batch-top-k's threshold."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        if path.is_file() and path.suffix not in KINDS:
            return False
        try:
            stored = Stored.of(path)
        except CheckpointError:
            return False
        return all(len(stored.shape(name)) == 3 for name in ("encoder.weight", "decoder.weight"))

    def describe(self, path: Path) -> DictionarySpec:
        """Reads headers and configuration. Raises CheckpointError."""
        stored = Stored.of(path)
        spec = _described(stored)
        headers = {stored.prefix + name: header for name, header in stored.headers.items()}
        check_shapes(stored.path, headers, _shapes(spec, stored))
        _check_config(stored.settings, spec.n_inputs)
        return replace(spec, identity=fingerprint(stored.files))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        stored = Stored.of(spec.path)
        t = stored.tensors(_shapes(spec, stored), device)
        threshold_F, norm_F, share_LF = None, None, None
        if spec.by_input:
            norm_F, share_LF = _decoupled(stored, t["decoder.weight"], t[THRESHOLD])
            threshold_F = norm_F.new_ones(spec.width)
        elif spec.selector == "jumprelu":
            # relu's zeros are above a threshold of -1, which training never set; and so here, by the relu behind.
            threshold_F = t[THRESHOLD].expand(spec.width).contiguous()
            norm_F = _norms(stored, t["decoder.weight"])
        norm = Normaliser.of(stored, t["decoder.bias"])
        mean_LD, into_L1 = norm.mean, norm.into
        if spec.by_input and not norm.is_none:  # ((x - mean) into - mean) into
            mean_LD, into_L1 = mean_LD + mean_LD / into_L1, into_L1.square()
        w_dec_LFD = t["decoder.weight"] * norm.out[:, None]
        return Weights(
            w_enc_DF=(t["encoder.weight"] * into_L1[:, None]).flatten(0, 1),
            b_enc_F=t["encoder.bias"],
            b_pre_D=mean_LD.flatten(),
            w_dec_FO=w_dec_LFD.permute(1, 0, 2).flatten(1, 2),
            b_dec_O=(t["decoder.bias"] * norm.out + norm.mean).flatten(),
            threshold_F=threshold_F,
            score_norm_F=norm_F,
            input_share_LF=share_LF,
        )


def _shapes(spec: DictionarySpec, stored: Stored) -> Shapes:
    inputs, d_in = ("inputs", spec.n_inputs), ("d_in", spec.d_in // spec.n_inputs)
    features = ("features", spec.width)
    shapes: dict[str, tuple[tuple[str, int], ...]] = {
        "encoder.bias": (features,),
        "decoder.bias": (inputs, d_in),
        "encoder.weight": (inputs, d_in, features),
        "decoder.weight": (inputs, features, d_in),
    }
    if spec.selector == "jumprelu":
        shapes[THRESHOLD] = (inputs,) if spec.by_input else ()
    return {stored.prefix + name: axes for name, axes in shapes.items()}


def _described(stored: Stored) -> DictionarySpec:
    """What the headers say; the identity is left empty. Raises CheckpointError."""
    weight, selector = stored.shape("encoder.weight"), "jumprelu" if THRESHOLD in stored.headers else "relu"
    is_decoupled = selector == "jumprelu" and bool(stored.shape(THRESHOLD))
    if not all(weight):
        raise CheckpointError(
            f"{stored.path}: 'encoder.weight' has shape {list(weight)}, so that nothing is in it."
        )
    n_inputs, d_in, width = weight
    k = stored.settings.number("k")
    known = "" if NORM_ID in stored.headers else f"; no {NORM_ID} is stored: taken as the sum over inputs"
    batch = (
        f"which norms of decoder rows these are stands among the tensors ({NORM_ID}); "
        "of a batch's top k the stored threshold stands, which training leaves at -1 where it never set it"
    )
    if is_decoupled:
        batch = "an input takes a feature by its own threshold and decoder norm; inputs are normalised twice"
    return DictionarySpec(
        format="crosscoder",
        path=stored.path,
        identity="",
        d_in=n_inputs * d_in,
        width=width,
        selector=selector,
        k=None,
        hook=None,
        site=None,
        model=None,
        corpus=None,
        context_length=None,
        prepend_bos=True,
        decoder_norm_gate=selector == "jumprelu",
        value_is_score=selector != "jumprelu",
        n_inputs=n_inputs,
        by_input=is_decoupled,
        expected=Expected(l0=k if selector == "jumprelu" and not is_decoupled else None),
        notes=(
            f"a crosscoder of {n_inputs} inputs of {d_in} numbers: sites of one model are named in order, --hook "
            "layers.3+layers.5; of several models, store activations with the vectors of all one behind the other",
            "activations are not multiplied by norms of decoder rows",
            *([batch + known] if selector == "jumprelu" else []),
        ),
    )


def _check_config(settings: Settings, n_inputs: int) -> None:
    layers = settings.values.get("encoder_layers")
    if layers is not None and layers != list(range(n_inputs)):
        settings.refuse("encoder_layers", "crosscoders that read fewer inputs than they give are not read.")


def _norms(stored: Stored, w_dec_LFD: Tensor) -> Tensor:
    """[F], what an activation is multiplied with before it is compared. Raises CheckpointError."""
    kind, settings = _kind(stored, default="CROSSCODER"), stored.settings
    if kind == "DECOUPLED":
        raise CheckpointError(
            f"{stored.path}: {NORM_ID} is 5 (DECOUPLED), of which each input has a threshold, but {THRESHOLD} is one."
        )
    summed_F, whole_F = w_dec_LFD.norm(dim=2).sum(0), w_dec_LFD.norm(dim=(0, 2))
    if kind == "NONE":
        return summed_F.new_ones(len(summed_F))
    if kind == "MIXED":
        of_whole, of_sum = (settings.number(f"code_normalization_alpha_{name}") for name in ("sae", "cc"))
        return whole_F * (1.0 if of_whole is None else of_whole) + summed_F * (
            0.1 if of_sum is None else of_sum
        )
    return summed_F if kind == "CROSSCODER" else whole_F


def _decoupled(stored: Stored, w_dec_LFD: Tensor, threshold_L: Tensor) -> tuple[Tensor, Tensor]:
    """Norms over thresholds: of a feature the largest [F], and the inputs' shares of it [L, F]; an input takes what
    is above 1. Raises CheckpointError."""
    if (kind := _kind(stored, default="DECOUPLED")) != "DECOUPLED":
        raise CheckpointError(
            f"{stored.path} holds {len(threshold_L)} thresholds, one an input, but {NORM_ID} says {kind}."
        )
    ratio_LF = (w_dec_LFD.norm(dim=2) / threshold_L.clamp_min(1 / OPEN)[:, None]).clamp_max(OPEN)
    ratio_LF[threshold_L < 0] = OPEN  # -1 is a threshold that training never set
    largest_F = ratio_LF.amax(0)
    return largest_F, (ratio_LF / largest_F).nan_to_num(nan=0.0)


def _kind(stored: Stored, default: str) -> str:
    """A name of `NORMS`. Raises CheckpointError."""
    if NORM_ID not in stored.headers:
        return default
    kinds = stored.unchecked(NORM_ID)[0].flatten().tolist()
    if len(kinds) != 1 or kinds[0] not in NORMS:
        raise CheckpointError(
            f"{stored.path}: {NORM_ID} is {shortened(kinds)}. Known are: {shortened(NORMS)}."
        )
    return NORMS[kinds[0]]
