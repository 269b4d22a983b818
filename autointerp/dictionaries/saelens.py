"""SAELens checkpoints: a folder with cfg.json (see `saelens_config.py`) and sae_weights.safetensors.

Source: decoderesearch/SAELens 6.54.12: sae_lens/saes/*.py.

    standard    relu((x - b_dec) @ W_enc + b_enc)
    gated       where (x - b_dec) @ W_enc + b_gate > 0: relu((x - b_dec) @ W_enc * exp(r_mag) + b_mag)
    matching_pursuit   no encoder; features found one by one with W_dec, after b_dec is subtracted, and b_dec is
                added again only where it was subtracted
    jumprelu    what is above `threshold`, or exp(`log_threshold`) in training dumps of early versions
    temporal    codes of what attention over the tokens before leaves (`saelens_temporal.py`)
    batchtopk   in training dumps: what is above `topk_threshold`, one number for all features
    poly_...    the decoder is a polynomial of the codes (`saelens_poly.py`)
    ..._transcoder   b_dec is not subtracted; W_dec [d_sae, d_out], skip connection W_skip [d_out, d_in]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from autointerp.dictionaries import saelens_poly, saelens_temporal
from autointerp.dictionaries.checkpoint import folder_of, read_settings, require_files
from autointerp.dictionaries.saelens_config import (
    BATCH_TOPK,
    CONFIG,
    SCALER,
    SKIP,
    architecture,
    configured,
    factor,
    subtracts_b_dec,
)
from autointerp.dictionaries.saelens_poly import A_FACTOR, OUTER
from autointerp.dictionaries.saelens_temporal import A_MAP
from autointerp.dictionaries.saelens_whitening import whitened, whitening_file
from autointerp.dictionaries.spec import DictionarySpec, Gate, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS: Final = "sae_weights.safetensors"

OF_ONE_KIND: Final = {
    "b_gate": "gated dictionaries",
    "r_mag": "gated dictionaries",
    "threshold": "jumprelu dictionaries",
    "log_threshold": "training dumps of jumprelu dictionaries",
    "topk_threshold": "training dumps of batchtopk dictionaries",
    "W_skip": "transcoders with a skip connection",
    A_MAP: "temporal dictionaries",
    A_FACTOR: "PolySAE's dictionaries",
}
"""Tensors that only these have, so that one says whether a dictionary is what its configuration calls it."""

SCALING_TENSORS: Final = ("scaling_factor", "finetuning_scaling_factor")
"""Ones in most old files; other values come from fine-tuning against shrinkage and are not read."""


@dataclass(frozen=True, slots=True)
class Saelens:
    """SAELens: cfg.json + sae_weights.safetensors, of any version; autoencoders and transcoders."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        folder = folder_of(path, CONFIG, WEIGHTS)
        if (folder / WEIGHTS).is_file():
            return (folder / CONFIG).is_file() or not (folder / "config.json").is_file()
        try:
            return "d_sae" in read_settings(folder / CONFIG).values
        except CheckpointError:
            return False

    def describe(self, path: Path) -> DictionarySpec:
        """Reads cfg.json and the header of the weights. Raises CheckpointError."""
        folder = folder_of(path, CONFIG, WEIGHTS)
        require_files(folder, CONFIG, WEIGHTS)
        spec = configured(folder)
        weights, settings = folder / WEIGHTS, read_settings(folder / CONFIG)
        headers, shapes = read_headers(weights), _shapes(spec)
        kind = settings.text("architecture") or architecture(settings)
        for name, owners in OF_ONE_KIND.items():
            if name in headers and name not in shapes:
                raise CheckpointError(
                    f"{weights} holds '{name}', which only {owners} have, but {CONFIG} says that its "
                    f"architecture is {kind}. Is the configuration of another dictionary?"
                )
        check_shapes(weights, headers, shapes)
        files = [folder / CONFIG, weights]
        if factor(settings) not in (None, 1.0):
            files.append(folder / SCALER)
        if (whitening := whitening_file(settings)) is not None:
            files.append(whitening)
        return replace(spec, identity=fingerprint(files))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        import torch

        settings = read_settings(spec.path / CONFIG)
        tensors = _read(spec, device)
        assert spec.input_factor is not None  # `find_dictionary` gives no such
        if spec.input_factor != 1.0:
            tensors = _scaled(tensors, spec.input_factor, by_decoder_norm=saelens_poly.has_norms(settings))
        if (path := whitening_file(settings)) is not None:
            tensors = whitened(tensors, settings, path, subtracts_b_dec=subtracts_b_dec(settings))
        if spec.needs_sequence:
            return saelens_temporal.weights_of(settings, tensors, subtracts_b_dec=subtracts_b_dec(settings))
        if saelens_poly.is_polynomial(settings):
            tensors = saelens_poly.folded(settings, tensors)
        b_dec_O, threshold_F = tensors["b_dec"], _threshold(tensors)
        if spec.selector == "pursuit":
            b_dec_O = b_dec_O if subtracts_b_dec(settings) else torch.zeros_like(b_dec_O)
            no_bias_F = torch.zeros(spec.width, device=device)
            return Weights(None, no_bias_F, b_dec_O, tensors["W_dec"], b_dec_O)
        gate = None
        if spec.selector == "gated":
            gate = Gate(tensors["b_gate"], tensors["r_mag"].exp(), tensors["b_mag"])
        return Weights(
            w_enc_DF=tensors["W_enc"],
            b_enc_F=tensors["b_enc" if gate is None else "b_gate"],
            b_pre_D=b_dec_O if subtracts_b_dec(settings) else torch.zeros(spec.d_in, device=device),
            w_dec_FO=tensors["W_dec"],
            b_dec_O=b_dec_O,
            threshold_F=None if threshold_F is None else threshold_F.expand(spec.width).contiguous(),
            gate=gate,
            w_skip_DO=tensors["W_skip"].T if "W_skip" in tensors else None,
        )


def _read(spec: DictionarySpec, device: str) -> dict[str, Tensor]:
    """The tensors that `spec` needs, after a look at those that must be ones."""
    import torch

    weights = spec.path / WEIGHTS
    present = read_headers(weights)
    scaling: Shapes = {name: (("d_sae", spec.width),) for name in SCALING_TENSORS if name in present}
    tensors = read_tensors(weights, {**_shapes(spec), **scaling}, device)
    for name in scaling:
        if not torch.allclose(tensors[name], torch.ones_like(tensors[name])):
            raise CheckpointError(
                f"{weights}: '{name}' is not all ones: the dictionary was fine-tuned to rescale its "
                "features, which is not read. Use the dictionary from before that fine-tuning."
            )
    return tensors


def _scaled(tensors: dict[str, Tensor], scale: float, *, by_decoder_norm: bool) -> dict[str, Tensor]:
    """For inputs that are not multiplied by `scale`, as SAELens does when it ends a training
    (fold_activation_norm_scaling_factor); scores that contain decoder norms shrink with these. In matching pursuit
    the codes shrink and the rows stay."""
    if "W_enc" not in tensors:
        return tensors | {"b_dec": tensors["b_dec"] / scale}
    divided = ["W_dec", "b_dec", *OUTER, *(["topk_threshold"] if by_decoder_norm else [])]
    folded = {name: tensors[name] / scale for name in divided if name in tensors}
    return tensors | folded | {"W_enc": tensors["W_enc"] * scale}


def _threshold(tensors: dict[str, Tensor]) -> Tensor | None:
    """[F], or [] where it is one for all."""
    if "log_threshold" in tensors:
        return tensors["log_threshold"].exp()
    return tensors.get("threshold", tensors.get("topk_threshold"))


def _shapes(spec: DictionarySpec) -> Shapes:
    """What the weights' file must hold. Raises CheckpointError."""
    d_in, d_sae = ("d_in", spec.d_in), ("d_sae", spec.width)
    d_out = d_in if spec.d_out is None else ("d_out", spec.d_out)
    settings, weights = read_settings(spec.path / CONFIG), spec.path / WEIGHTS
    kind = architecture(settings)
    if spec.needs_sequence:
        return saelens_temporal.shapes(settings, weights, read_headers(weights))
    biases = ("b_gate", "b_mag", "r_mag") if spec.selector == "gated" else ("b_enc",)
    shapes: dict[str, tuple[tuple[str, int], ...]] = {"b_dec": (d_out,)}
    shapes |= dict.fromkeys(biases, (d_sae,))
    shapes |= {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out)}
    if spec.selector == "pursuit":
        shapes = {name: shapes[name] for name in ("b_dec", "W_dec")}
    if saelens_poly.is_polynomial(settings):
        del shapes["W_dec"]
        shapes |= saelens_poly.shapes(settings)
    if kind in SKIP:
        shapes["W_skip"] = (d_out, d_in)
    if kind in BATCH_TOPK:
        shapes["topk_threshold"] = ()
    elif spec.selector == "jumprelu":
        in_logs = "log_threshold" in read_headers(weights)
        shapes["log_threshold" if in_logs else "threshold"] = (d_sae,)
    return shapes
