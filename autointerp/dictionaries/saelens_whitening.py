"""The whitening of a SAELens training checkpoint (`normalize_activations: covariance_whitening`, arXiv 2511.13981).

    z = (x - mean) matrix;  codes and z_hat as the dictionary has them of z;  x_hat = z_hat inverse_matrix + mean

Both maps are affine, so they are folded into the weights, as SAELens does it when a training ends. A checkpoint from
before that has their tensors beside its own, in activation_whitening.safetensors.

Source: decoderesearch/SAELens 6.54.12: sae_lens/training/activation_scaler.py, saes/sae.py
(fold_activation_whitening).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from autointerp.dictionaries.checkpoint import Settings
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

WHITENING: Final = "covariance_whitening"
FILE: Final = "activation_whitening.safetensors"


def whitening_file(settings: Settings) -> Path | None:
    """Where the maps lie, if the weights expect whitened inputs. Raises CheckpointError: no such file, or not of
    this size."""
    if settings.values.get("normalize_activations") != WHITENING:
        return None
    path = settings.path.with_name(FILE)
    if not path.is_file():
        settings.refuse(
            "normalize_activations",
            f"the weights expect whitened inputs, and the mean and matrices are not in these files (no {FILE}, which "
            "training checkpoints have). Fold them in with SAELens (sae.fold_activation_whitening(...), "
            "sae.save_model(folder)) and use that folder.",
        )
    if settings.flag("rescale_acts_by_decoder_norm", False):
        settings.refuse("rescale_acts_by_decoder_norm", f"with {WHITENING} this is not read.")
    check_shapes(path, read_headers(path), _shapes(settings))
    return path


def whitened(
    tensors: dict[str, Tensor], settings: Settings, path: Path, *, subtracts_b_dec: bool
) -> dict[str, Tensor]:
    """For inputs that are not whitened. Raises CheckpointError."""
    maps = read_tensors(path, _shapes(settings), str(tensors["W_enc"].device))
    mean_D, matrix_DD, inverse_DD = maps["mean"], maps["matrix"], maps["inverse_matrix"]
    folded = tensors | {
        "W_enc": matrix_DD @ tensors["W_enc"],
        "W_dec": tensors["W_dec"] @ inverse_DD,
        "b_dec": tensors["b_dec"] @ inverse_DD + mean_D,
    }
    if subtracts_b_dec:  # the mean is in b_dec then
        return folded
    shift_F = mean_D @ folded["W_enc"]
    scales_F = {"b_enc": 1.0, "b_gate": 1.0, "b_mag": tensors["r_mag"].exp() if "r_mag" in tensors else 1.0}
    return folded | {
        name: tensors[name] - shift_F * scale for name, scale in scales_F.items() if name in tensors
    }


def _shapes(settings: Settings) -> Shapes:
    d_in = settings.count("d_in")
    square = (("d_in", d_in), ("d_in", d_in))
    return {"mean": (("d_in", d_in),), "matrix": square, "inverse_matrix": square}
