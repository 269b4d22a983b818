"""Meta-SAEs (arXiv 2502.04878): dictionaries whose inputs are the decoder rows of another one, the parent.

A meta-feature has no tokens of its own. Where parent features f are active with values z_f,

    activation of meta-feature m = sum over f of z_f * metacode[f, m]

with `metacode` the meta-SAE's code of the parent's decoder row f. So m is active just where a parent feature is
that is made of it, and its windows are theirs. A meta-SAE that chose among a batch in training is calibrated on
all decoder rows together: there are no others.

`parent`: a folder, beside dictionary.json or anywhere, or whatever else `--sae` takes. `parent_rows`: `unit`
(scaled to norm 1, as the paper trains) or `stored`.

Shapes: P parent features, D = length of their decoder rows, F = width of the meta-SAE; n tokens, m codes of the
parent on these, j their parts.
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autointerp.dictionaries.checkpoint import Settings, is_there
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.dictionaries.encode import Encoder

ROWS: Final = ("unit", "stored")

_IS_PARENT: ContextVar[bool] = ContextVar("_IS_PARENT", default=False)
"""Whether what is described is somebody's parent: folders that name each other would not come to an end."""


def of_parent(own: DictionarySpec, settings: Settings) -> DictionarySpec:
    """What the meta-SAE is on tokens. `own`: what it is on decoder rows. Raises CheckpointError where the two
    don't fit."""
    parent = _parent(settings)
    if own.d_in != (parent.d_out or parent.d_in):
        settings.refuse(
            "parent",
            f"its decoder rows have {parent.d_out or parent.d_in} numbers, but the encoder here reads {own.d_in}.",
        )
    if own.signed or own.is_transcoder:
        settings.refuse("selector", "a meta-SAE's codes of decoder rows are not negative.")
    if own.needs_gradient:
        settings.refuse(
            "gradient_weight", "a meta-SAE reads decoder rows, which have no gradients. Leave it out."
        )
    if (settings.text("parent_rows") or "unit") not in ROWS:
        settings.refuse("parent_rows", f"these are known: {', '.join(ROWS)}.")
    both = hashlib.blake2b(f"{own.identity}\0{parent.identity}".encode(), digest_size=16)
    return replace(
        parent,
        format=own.format,
        path=own.path,
        identity=both.hexdigest(),
        width=own.width,
        selector="custom",
        k=None,
        custom_code=_in_words(own, parent),
        # The parent's own steps are its encoder's.
        transform=(),
        by_input=False,
        decoder_norm_gate=False,
        value_is_score=True,
        reconstructs=False,
        group_sizes=own.group_sizes,
        expected=own.expected,
        approximation=own.approximation,
        notes=(
            f"a meta-SAE of {parent.path} (arXiv 2502.04878): active where features of that are, with the sum of "
            "their activations times their decoder rows' codes",
            *own.notes,
        ),
    )


def _in_words(own: DictionarySpec, parent: DictionarySpec) -> str:
    k = "" if own.k is None else f", k = {own.k:,}"
    if own.calibration is not None:
        k = f", its threshold found on all of them ({own.calibration.rule}, {own.calibration.k:g} a row)"
    parent_k = "" if parent.k is None else f", k = {parent.k:,}"
    return (
        f"of the parent's decoder rows its own {own.selector}{k}; of a token the sum of these by the parent's "
        f"activations ({parent.format}: {parent.selector}{parent_k}, {parent.width:,} features)"
    )


def _parent(settings: Settings) -> DictionarySpec:
    from autointerp.dictionaries.locate import find_dictionary
    from autointerp.dictionaries.outside import OUTSIDE

    text = settings.text("parent") or ""
    beside = settings.path.parent / text
    if not is_there(beside) and not is_there(Path(text)) and OUTSIDE.fullmatch(text):
        settings.refuse(
            "parent", "a checkpoint may not name code. Name a folder, or a Hugging Face repository."
        )
    if _IS_PARENT.get():
        settings.refuse("parent", "a parent may not have one itself.")
    within = _IS_PARENT.set(True)
    try:
        parent = find_dictionary(str(beside) if is_there(beside) else text)
    except CheckpointError as error:
        raise CheckpointError(f"{settings.path}: parent: {error}") from error
    finally:
        _IS_PARENT.reset(within)
    if parent.signed or parent.is_basis:
        settings.refuse("parent", "it must have decoder rows, and activations without signs.")
    if parent.needs_gradient:
        settings.refuse(
            "parent", "it chooses by gradients (gradient_weight), which are not made for a parent."
        )
    if parent.calibration is not None:
        settings.refuse(
            "parent",
            "it stores no threshold, and a parent can't be calibrated here. Explain it by itself, and put the "
            "threshold that its run finds (cache/NAME/manifest.json) into its files.",
        )
    return parent


def on_tokens(own: DictionarySpec, weights: Weights, settings: Settings, device: str) -> Weights:
    """The meta-SAE as an encoder of tokens. `own`, `weights`: of the meta-SAE on decoder rows. Raises
    CheckpointError."""
    import torch

    from autointerp.dictionaries.encode import Encoder
    from autointerp.dictionaries.locate import reader_of

    parent_spec = _parent(settings)
    parent_weights = reader_of(parent_spec).load(parent_spec, device)
    parent = Encoder(parent_spec, parent_weights)
    rows_PD = parent_weights.decoder
    if (settings.text("parent_rows") or "unit") == "unit":
        rows_PD = rows_PD / rows_PD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    metacodes = Metacodes.of(own, weights, rows_PD)
    none = torch.zeros(parent_spec.d_in, device=device)
    return Weights(
        w_enc_DF=None,
        b_enc_F=torch.zeros(own.width, device=device),
        b_pre_D=none,
        w_dec_FO=weights.w_dec_FO,
        b_dec_O=weights.b_dec_O,
        encode=lambda x_nD: metacodes.of_tokens(parent, x_nD),
        predict=parent_weights.predict,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Metacodes:
    """Of each parent feature the meta-features it is made of: those of p are `begin_P[p]` to `begin_P[p + 1]`."""

    begin_P: Tensor
    """[P + 1], int64."""
    feature_J: Tensor
    value_J: Tensor
    width: int

    @classmethod
    def of(cls, own: DictionarySpec, weights: Weights, rows_PD: Tensor) -> Metacodes:
        """Raises CheckpointError where no row has any."""
        import torch

        from autointerp.dictionaries.calibrate import calibrated
        from autointerp.dictionaries.encode import Encoder

        encoder = Encoder(own, weights)
        if own.calibration is not None:
            calibration = replace(own.calibration, batch_tokens=len(rows_PD))
            uncalibrated = Encoder(replace(own, calibration=calibration), weights)
            found = calibrated(uncalibrated, lambda: iter([rows_PD]), len(rows_PD))
            encoder = Encoder(own, replace(weights, threshold_F=found.threshold_F))
        codes = encoder.encode(rows_PD)
        if not len(codes):
            raise CheckpointError(
                f"{own.path}: on none of the parent's {len(rows_PD):,} decoder rows any feature is active. Is it "
                "another parent's? Was it trained on rows of norm 1 (parent_rows)?"
            )
        counts_P = torch.bincount(codes.token_M, minlength=len(rows_PD))
        begin_P = torch.cat([counts_P.new_zeros(1), counts_P.cumsum(0)])
        return cls(begin_P, codes.feature_M, codes.value_M, own.width)

    def of_tokens(self, parent: Encoder, x_nD: Tensor) -> tuple[Tensor, Tensor]:
        """Values and meta-features [n, K], K being the most that a token of these has. `x_nD`: what the parent
        reads. Dense is only [n, F] of the tile that the encoder gives."""
        import torch

        codes = parent.candidates(x_nD)
        active = (codes.value_M > 0).nonzero()[:, 0]
        token_m, feature_m, value_m = (
            column[active] for column in (codes.token_M, codes.feature_M, codes.value_M)
        )
        begin_m = self.begin_P[feature_m]
        counts_m = self.begin_P[feature_m + 1] - begin_m
        of_j = torch.repeat_interleave(torch.arange(len(counts_m), device=x_nD.device), counts_m)
        before_m = counts_m.cumsum(0) - counts_m
        part_j = torch.arange(len(of_j), device=x_nD.device) - before_m[of_j] + begin_m[of_j]
        dense_nF = torch.zeros(len(x_nD), self.width, device=x_nD.device)
        places_j = token_m[of_j] * self.width + self.feature_J[part_j]
        dense_nF.view(-1).index_add_(0, places_j, value_m[of_j] * self.value_J[part_j])
        most = max(1, int((dense_nF > 0).sum(dim=1).max()))
        value_nK, feature_nK = torch.topk(dense_nF, most, dim=1)
        return value_nK, feature_nK
