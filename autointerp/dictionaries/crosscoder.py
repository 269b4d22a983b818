"""Crosscoders of dictionary_learning's fork by Julian Minder and Clement Dumas: one file of tensors, mostly with
HuggingFace's config.json beside it.

    encoder.weight [L, D, F], encoder.bias [F]      f = relu(sum over inputs of x_l encoder.weight[l] + encoder.bias)
    decoder.weight [L, F, D], decoder.bias [L, D]   x_hat_l = f decoder.weight[l] + decoder.bias[l]
    threshold []                                    batch-top-k: f where f times its norm is above it
    activation_mean, activation_std [L, D], activation_global_scale [L]
                                                    (x_l - mean_l) scale_l goes in, and comes out the other way; NaN
                                                    where nothing is normalised

A feature's norm (`code_normalization_id`): 1 sum over inputs of the norms of its decoder rows, 2 norm of these rows
as one, 3 both, weighted, 4 one, 5 a norm and a threshold each input. f is its activation, as `encode` gives it;
`get_activations` multiplies by the norm.

The L inputs are sites of one model or one site of several; which, no file says.

Sources: science-of-finetuning/dictionary_learning (jkminder's): dictionary.py; arXiv 2504.02922.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, read_settings, shortened
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.spec import DictionarySpec, Expected, Weights
from autointerp.dictionaries.tensors import KINDS, Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "config.json"
WEIGHTS: Final = ("model.safetensors", "ae.pt", "model.pt")
"""Of a folder; any other file is named."""
COMPILED: Final = "_orig_mod."
"""In front of all names where torch.compile was on."""
FOUR: Final = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
THRESHOLD, NORM_ID = "threshold", "code_normalization_id"
MEAN, STD, SCALE = "activation_mean", "activation_std", "activation_global_scale"
NORMS: Final = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
OFF: Final = 1e-8
"""Added to a scale before it is divided by."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of tensors."""

    path: Path
    headers: Mapping[str, TensorHeader]
    prefix: str

    @classmethod
    def of(cls, path: Path) -> Stored:
        """Raises CheckpointError."""
        found = next((path / name for name in WEIGHTS if (path / name).is_file()), path)
        headers = read_headers(found)
        prefix = COMPILED if all(name.startswith(COMPILED) for name in headers) else ""
        return cls(found, {name.removeprefix(prefix): header for name, header in headers.items()}, prefix)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.headers[name].shape if name in self.headers else ()

    def shapes(self, spec: DictionarySpec, n_inputs: int) -> Shapes:
        inputs, d_in = ("inputs", n_inputs), ("d_in", spec.d_in // n_inputs)
        features = ("features", spec.width)
        shapes: dict[str, tuple[tuple[str, int], ...]] = {
            "encoder.bias": (features,),
            "decoder.bias": (inputs, d_in),
            "encoder.weight": (inputs, d_in, features),
            "decoder.weight": (inputs, features, d_in),
        }
        shapes |= {THRESHOLD: ()} if spec.selector == "jumprelu" else {}
        return {self.prefix + name: axes for name, axes in shapes.items()}

    def tensors(self, shapes: Shapes, device: str) -> dict[str, Tensor]:
        found = read_tensors(self.path, shapes, device)
        return {name.removeprefix(self.prefix): tensor for name, tensor in found.items()}

    def unchecked(self, *names: str, device: str = "cpu") -> list[Tensor]:
        """Those that may be whole numbers, or NaN."""
        wanted = [self.prefix + name for name in names]
        found = KINDS[self.path.suffix].load(self.path, wanted, device)
        return [found[name] for name in wanted]


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
        spec, config = _described(stored), _config(stored.path)
        n_inputs = _n_inputs(stored)
        check_shapes(
            stored.path,
            {stored.prefix + name: header for name, header in stored.headers.items()},
            stored.shapes(spec, n_inputs),
        )
        _check_config(_settings(stored.path), n_inputs)
        return replace(spec, identity=fingerprint([*([config] if config else []), stored.path]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        stored = Stored.of(spec.path)
        t = stored.tensors(stored.shapes(spec, _n_inputs(stored)), device)
        threshold_F, norm_F = None, None
        if spec.selector == "jumprelu":
            # relu's zeros are above a threshold of -1, which training never set; and so here, by the relu behind.
            threshold_F = t[THRESHOLD].expand(spec.width).contiguous()
            norm_F = _norms(stored, t["decoder.weight"])
        mean_LD, scale_L, unscale_L = _normaliser(stored, t["decoder.bias"])
        w_dec_LFD, b_dec_LD = t["decoder.weight"] * unscale_L[:, None, None], t["decoder.bias"]
        return Weights(
            w_enc_DF=(t["encoder.weight"] * scale_L[:, None, None]).flatten(0, 1),
            b_enc_F=t["encoder.bias"],
            b_pre_D=mean_LD.flatten(),
            w_dec_FO=w_dec_LFD.permute(1, 0, 2).flatten(1, 2),
            b_dec_O=(b_dec_LD * unscale_L[:, None] + mean_LD).flatten(),
            threshold_F=threshold_F,
            score_norm_F=norm_F,
        )


def _described(stored: Stored) -> DictionarySpec:
    """What the headers say; the identity is left empty. Raises CheckpointError."""
    weight, selector = stored.shape("encoder.weight"), "jumprelu" if THRESHOLD in stored.headers else "relu"
    if selector == "jumprelu" and stored.shape(THRESHOLD):
        raise CheckpointError(
            f"{stored.path} holds {list(stored.shape(THRESHOLD))} thresholds, one an input (code normalization "
            "DECOUPLED): a feature then has an activation for each input, which is not read."
        )
    if not all(weight):
        raise CheckpointError(
            f"{stored.path}: 'encoder.weight' has shape {list(weight)}, so that nothing is in it."
        )
    n_inputs, d_in, width = weight
    k = _settings(stored.path).number("k")
    known = "" if NORM_ID in stored.headers else f"; no {NORM_ID} is stored: taken as the sum over inputs"
    batch = (
        f"which norms of decoder rows these are stands among the tensors ({NORM_ID}); "
        "of a batch's top k the stored threshold stands, which training leaves at -1 where it never set it"
    )
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
        expected=Expected(l0=k if selector == "jumprelu" else None),
        notes=(
            f"a crosscoder of {n_inputs} inputs of {d_in} numbers: sites of one model are named in order, --hook "
            "layers.3+layers.5; of several models, store activations with the vectors of all one behind the other",
            "activations are not multiplied by norms of decoder rows",
            *([batch + known] if selector == "jumprelu" else []),
        ),
    )


def _n_inputs(stored: Stored) -> int:
    return stored.shape("encoder.weight")[0]


def _config(weights: Path) -> Path | None:
    path = weights.with_name(CONFIG)
    return path if path.is_file() else None


def _settings(weights: Path) -> Settings:
    config = _config(weights)
    return Settings(weights.with_name(CONFIG), {}) if config is None else read_settings(config)


def _check_config(settings: Settings, n_inputs: int) -> None:
    layers = settings.values.get("encoder_layers")
    if layers is not None and layers != list(range(n_inputs)):
        settings.refuse("encoder_layers", "crosscoders that read fewer inputs than they give are not read.")


def _norms(stored: Stored, w_dec_LFD: Tensor) -> Tensor:
    """[F], what an activation is multiplied with before it is compared. Raises CheckpointError."""
    settings, kinds = _settings(stored.path), [1]
    if NORM_ID in stored.headers:
        kinds = stored.unchecked(NORM_ID)[0].flatten().tolist()
    kind = kinds[0] if len(kinds) == 1 else None
    if kind not in NORMS or NORMS[kind] == "DECOUPLED":
        raise CheckpointError(
            f"{stored.path}: {NORM_ID} is {shortened(kinds)}. Read are: {shortened(NORMS)} but DECOUPLED."
        )
    summed_F, whole_F = w_dec_LFD.norm(dim=2).sum(0), w_dec_LFD.norm(dim=(0, 2))
    if NORMS[kind] == "NONE":
        return summed_F.new_ones(len(summed_F))
    if NORMS[kind] == "MIXED":
        of_whole, of_sum = (settings.number(f"code_normalization_alpha_{name}") for name in ("sae", "cc"))
        return whole_F * (1.0 if of_whole is None else of_whole) + summed_F * (
            0.1 if of_sum is None else of_sum
        )
    return summed_F if NORMS[kind] == "CROSSCODER" else whole_F


def _normaliser(stored: Stored, like_LD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [L, D], factor in [L] and factor out [L]. Raises CheckpointError."""
    none = like_LD.new_zeros(like_LD.shape), like_LD.new_ones(len(like_LD)), like_LD.new_ones(len(like_LD))
    if MEAN not in stored.headers:
        return none
    if missing := [name for name in (STD, SCALE) if name not in stored.headers]:
        raise CheckpointError(f"{stored.path} has {MEAN}, but no {' and no '.join(missing)}.")
    found = stored.unchecked(MEAN, STD, SCALE, device=str(like_LD.device))
    if any(tensor.is_complex() for tensor in found):
        raise CheckpointError(f"{stored.path}: {MEAN}, {STD} and {SCALE} must be real numbers.")
    mean_LD, std_LD, scale_L = (tensor.to(like_LD) for tensor in found)
    if mean_LD.isnan().any() or std_LD.isnan().any():  # how the source says that nothing is normalised
        return none
    if mean_LD.shape != like_LD.shape or scale_L.shape != like_LD.shape[:1] or not bool((scale_L > 0).all()):
        raise CheckpointError(
            f"{stored.path}: {MEAN} has shape {list(mean_LD.shape)} and {SCALE} is {shortened(scale_L.tolist())}, "
            f"but of {list(like_LD.shape)} inputs and numbers each input has a mean and a factor above 0."
        )
    return mean_LD, scale_L, 1 / (scale_L + OFF)
