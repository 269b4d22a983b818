"""PolySAE's files (arXiv 2602.01322), which its own copy of SAELens writes: architectures that begin with `poly_`.

    codes     as of the architecture behind `poly_`; its `poly_matryoshka` is SAELens' matryoshka_batchtopk
    decoder   of codes z, with a = z U1, b = z U2, c = z U3 cut to the shorter where ranks differ:
              a C1^T + lambda2 (a b) C2^T + lambda3 (a b c) C3^T + b_dec; `poly_order` says how many of the terms
    shared_u  U_shared stands for U1, U2 and U3, which are stored all the same: as zeros
    W_dec     is stored, too, and is no part of the decoder

With `rescale_acts_by_decoder_norm` training multiplies scores with the norms of what the decoder makes of each
feature alone, at a code of 1. Saving a `poly_topk` for inference puts those of W_dec in their place, and reading it
there takes them again, which by then are ones; of a `poly_batchtopk` it multiplies thresholds with norms, too, that
training compared as they are. Both are read as they are stored.

Source: pakoromilas/PolySAE at 7cf6ead: sae_lens/saes/polysae.py.

Shapes: D = d_in, F = width, R a rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from autointerp.dictionaries.checkpoint import Settings
from autointerp.dictionaries.variants import VARIANTS

if TYPE_CHECKING:
    from torch import Tensor

BASES: Final = {
    "poly_topk": "topk",
    "poly_jumprelu": "jumprelu",
    "poly_batchtopk": "batchtopk",
    "poly_matryoshka": "matryoshka_batchtopk",
}
"""Whose encoders they have."""
A_FACTOR: Final = "C1"
"""A tensor that only these have."""
OUTER: Final = (A_FACTOR, "C2", "C3")
"""Factors that lie in the space of what is reconstructed."""
OF_TRAINING: Final = "decoder_init_norm"
"""A setting that only configurations of training have."""


def has_norms(settings: Settings) -> bool:
    """Of any architecture: whether scores are multiplied with norms of the decoder."""
    return settings.flag("rescale_acts_by_decoder_norm", False)


def is_polynomial(settings: Settings) -> bool:
    return settings.text("architecture") in BASES


def is_linear(settings: Settings) -> bool:
    """Whether its decoder is the linear term alone. Raises CheckpointError."""
    order = settings.integer("poly_order", 3)
    if order not in (1, 2, 3):
        settings.refuse("poly_order", "of PolySAE it is 1, 2 or 3.")
    return order == 1


def approximation(settings: Settings) -> str | None:
    """For `DictionarySpec`."""
    if not has_norms(settings) or _is_dump(settings):
        return None
    return (
        "scores have the norms of W_dec, which saving for inference puts in place of the polynomial decoder's"
    )


def notes(settings: Settings) -> list[str]:
    variant = VARIANTS["polysae"]
    found = [f"{variant.note} ({variant.paper})"]
    if is_linear(settings):
        found = ["the decoder is U1 C1^T (poly_order 1), and not W_dec"]
    if has_norms(settings):
        whose = "what the decoder makes of each feature alone" if _is_dump(settings) else "W_dec's rows"
        found.append(f"scores are multiplied with the norms of {whose}")
    return found


def shapes(settings: Settings) -> dict[str, tuple[tuple[str, int], ...]]:
    """Of what is read in place of W_dec. Raises CheckpointError."""
    d_in, d_sae = ("d_in", settings.count("d_in")), ("d_sae", settings.count("d_sae"))
    first, second, third = (("rank", rank) for rank in _ranks(settings))
    found: dict[str, tuple[tuple[str, int], ...]] = {_u(settings): (d_sae, first), "C1": (d_in, first)}
    if not has_norms(settings):
        return found
    if not _is_dump(settings):
        return found | {"W_dec": (d_sae, d_in)}
    if not settings.flag("shared_u", False):
        found |= {"U2": (d_sae, second), "U3": (d_sae, third)}
    return found | {"C2": (d_in, second), "C3": (d_in, third), "lambda2": (), "lambda3": ()}


def folded(settings: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the linear term [F, D], whose rows are directions, as W_dec. Norms that scores are multiplied with are
    folded in, so that activations are what they are and times directions what they add."""
    linear_FD = tensors[_u(settings)] @ tensors["C1"].T
    if not has_norms(settings):
        return {**tensors, "W_dec": linear_FD}
    norms_of = _alone(settings, tensors, linear_FD) if _is_dump(settings) else tensors["W_dec"]
    norm_F = norms_of.norm(dim=1)
    return {
        **tensors,
        "W_enc": tensors["W_enc"] * norm_F,
        "b_enc": tensors["b_enc"] * norm_F,
        "W_dec": linear_FD / norm_F.clamp_min(1e-30)[:, None],
    }


def _alone(settings: Settings, tensors: Mapping[str, Tensor], linear_FD: Tensor) -> Tensor:
    """What the decoder makes of each feature alone, at a code of 1 [F, D]. Terms that `poly_order` leaves out are
    stored with a lambda of 0."""
    _, second, third = _ranks(settings)
    first_FR = tensors[_u(settings)]
    two_FR = first_FR[:, :second] * tensors.get("U2", first_FR)[:, :second]
    three_FR = two_FR[:, :third] * tensors.get("U3", first_FR)[:, :third]
    quadratic_FD, cubic_FD = two_FR @ tensors["C2"].T, three_FR @ tensors["C3"].T
    return linear_FD + tensors["lambda2"] * quadratic_FD + tensors["lambda3"] * cubic_FD


def _u(settings: Settings) -> str:
    return "U_shared" if settings.flag("shared_u", False) else "U1"


def _is_dump(settings: Settings) -> bool:
    return OF_TRAINING in settings.values


def _ranks(settings: Settings) -> tuple[int, int, int]:
    """Of the three terms. Raises CheckpointError."""
    value = settings.values.get("poly_ranks")
    if value is None:
        rank = settings.count("poly_rank" if settings.values.get("poly_rank") is not None else "d_in")
        return rank, rank, rank
    ranks = (
        [rank for rank in cast(list[object], value) if type(rank) is int] if isinstance(value, list) else []
    )
    if value != ranks or len(ranks) != 3 or not ranks[0] >= ranks[1] >= ranks[2] > 0:
        settings.refuse(
            "poly_ranks", "expected three numbers above 0, of which none is above the one before."
        )
    return ranks[0], ranks[1], ranks[2]
