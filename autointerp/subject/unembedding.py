"""Which tokens a direction in the residual stream promotes and suppresses.

    direction_D -> [projection behind MLP or attention ->] final norm's gain (LayerNorm: centred first) -> unembedding

The logit lens on a feature's decoder row (nostalgebraist 2020; Bloom and Lin 2024, "Understanding SAE
features with the logit lens"; Neuronpedia's positive and negative logits): what the direction adds to each
logit by the direct path past all later layers, before the division by the final norm's scale, which depends
on the token and is common to all logits. Left out for that reason too: the norm's bias and the
unembedding's, which belong to no direction, and a soft cap on logits (Gemma 2), which keeps their order.

The mean over the vocabulary is subtracted, as TransformerLens' `center_unembed` does: softmax doesn't see
what is added to all logits, so only what a token gets beyond the average one promotes it. The order of
tokens is the same either way. Rows of the unembedding behind the tokenizer's last token are padding; they
count nowhere.

The few tensors are read from the model's safetensors by name; the model itself is not loaded.

Shapes: Q directions, D = d_model, V tokens, H = width at a site (d_mlp for `neurons`, all heads for `z`,
else D).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from autointerp.subject.families import BEFORE_A_NORM
from autointerp.subject.largest import MAX_ELEMENTS, Keys, largest, ordered_sum, unit_rows
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.named_tensors import EMBEDDING, FLOATS, NamedTensors
from autointerp.subject.stream import FINAL_NORMS, without_vocabulary
from autointerp.types import Point, Site, TokenEffects

SIGNIFICANT: Final = 6
"""Digits of an effect that are kept."""


_NORM: Final = re.compile(r"(.*\.)?(norm|ln_f|final_layer_norm|final_layernorm)\.weight")
_HEAD: Final = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")
_PROJECTIONS: Final[dict[Point, tuple[str, str]]] = {
    "neurons": ("MLP", r"mlp\.(down_proj|c_proj|dense_4h_to_h)"),
    "z": ("attention", r"(self_attn|attn|attention)\.(o_proj|c_proj|dense|out_proj)"),
}
"""Whose output projection takes what is at the point to the residual stream, and the module's name."""


@dataclass(frozen=True, slots=True)
class NoUnembedding:
    """Directions at this site of this model have no promoted vocabulary, or none that is known here."""

    reason: str


class Unembedding:
    """From directions at one site to effects on logits."""

    def __init__(
        self,
        gain_D: Tensor,
        rows_VD: Tensor,
        *,
        centres: bool,
        projection_DH: Tensor | None = None,
        max_elements: int = MAX_ELEMENTS,
    ) -> None:
        """`gain_D`: the final norm's, offset included. `rows_VD`: the unembedding, any float dtype.
        `projection_DH`: from the site to the residual stream, None where directions lie in the stream."""
        self._gain_D = gain_D.to(torch.float64)
        self._centres = centres
        self._projection_DH = None if projection_DH is None else projection_DH.to(torch.float64)
        self._keys = Keys(rows_VD, scaled=False, max_elements=max_elements)
        step = max(1, max_elements // rows_VD.shape[1])
        sums = [chunk_vD.to(torch.float64).sum(dim=0) for chunk_vD in rows_VD.split(step)]
        self._mean_D = torch.stack(sums).sum(dim=0) / len(rows_VD)

    @property
    def d_in(self) -> int:
        """Length of a direction."""
        return len(self._gain_D) if self._projection_DH is None else self._projection_DH.shape[1]

    @property
    def is_finite(self) -> bool:
        """False where a weight is NaN or infinite: the mean over the vocabulary then is too."""
        return bool(torch.isfinite(self._gain_D).all() and torch.isfinite(self._mean_D).all())

    @torch.no_grad()
    def effects(self, directions_QH: Tensor, n: int) -> list[tuple[TokenEffects, TokenEffects]]:
        """For each direction the n tokens with the largest effects, the largest first, and the n with the
        smallest, the smallest first; of equal ones the lowest id.

        An effect is in units of logit times the norm's scale, for a direction added once (activation 1).
        Fewer than n where the vocabulary is smaller; none for a direction that the norm takes to zero. The
        result for a direction doesn't depend on which others are asked about.
        """
        unit_QD, size_Q = unit_rows(self._at_unembedding(directions_QH))
        able_q = torch.nonzero(size_Q)[:, 0]
        unit_qD, size_q = unit_QD[able_q], size_Q[able_q]
        found = largest(torch.cat([unit_qD, -unit_qD]), self._keys, n)
        mean_q = (ordered_sum(unit_qD * self._mean_D) * size_q).tolist()
        effects = [(TokenEffects((), ()), TokenEffects((), ()))] * len(directions_QH)
        for number, place in enumerate(able_q.tolist()):
            size = float(size_q[number])
            up, raised = found.of(number)
            down, lowered = found.of(len(able_q) + number)
            promoted = (_kept(score * size - mean_q[number]) for score in raised)
            suppressed = (_kept(-score * size - mean_q[number]) for score in lowered)
            effects[place] = (
                TokenEffects(tuple(up), tuple(promoted)),
                TokenEffects(tuple(down), tuple(suppressed)),
            )
        return effects

    def _at_unembedding(self, directions_QH: Tensor) -> Tensor:
        """[Q, D] float64: what the unembedding sees of each direction, but for the norm's scale."""
        x_QD = directions_QH.to(torch.float64)
        if self._projection_DH is not None:
            # One at a time: a product of two matrices rounds in its own way for every Q.
            x_QD = torch.stack([self._projection_DH @ direction_H for direction_H in x_QD])
        if self._centres:
            x_QD = x_QD - ordered_sum(x_QD)[:, None] / x_QD.shape[1]
        return x_QD * self._gain_D


def _kept(effect: float) -> float:
    return float(f"{effect:.{SIGNIFICANT}g}") + 0.0


# --- from a model's files --------------------------------------------------------------------------------


def read_unembedding(
    files: ModelFiles, site: Site, n_tokens: int, device: str, max_elements: int = MAX_ELEMENTS
) -> Unembedding | NoUnembedding:
    """For directions at `site`, from the model's weights; of a hub model they are fetched first.

    `n_tokens`: how many ids the tokenizer has. Raises ModelError where a file is missing or unreadable.
    """
    model_type = files.architecture.model_type
    if (reason := without_vocabulary(model_type, site)) is not None:
        return NoUnembedding(reason)
    norm = FINAL_NORMS[model_type]
    tensors = NamedTensors(files.with_weights(), device)
    gain = tensors.only(_NORM)
    # Where a file has a head of its own, transformers doesn't tie it to the embedding.
    rows = tensors.only(_HEAD) or tensors.only(EMBEDDING)
    if rows is None or (gain is None and norm.has_weight):
        what = "unembedding" if rows is None else "final norm"
        return NoUnembedding(f"the weights of '{files.name}' have no single tensor that is the {what}")
    d_model = files.architecture.d_model
    rows_VD = tensors.read(rows)
    gain_D = rows_VD.new_ones(d_model) if gain is None else tensors.read(gain)
    for name, tensor, fits in ((gain, gain_D, gain_D.shape == (d_model,)),
                               (rows, rows_VD, rows_VD.shape[1:] == (d_model,))):  # fmt: skip
        if tensor.dtype not in FLOATS or not fits:
            shape = list(tensor.shape)
            return NoUnembedding(
                f"'{name}' of '{files.name}' is {tensor.dtype} of shape {shape}, not plain weights"
            )
    projection_DH = None
    if site.point in BEFORE_A_NORM:
        projection_DH = _gain_behind(tensors, site, files)
        if projection_DH is None:
            return NoUnembedding(f"the norm behind '{site}' was not found")
    elif site.point in _PROJECTIONS:
        projection_DH = _projection(tensors, site, files)
        if projection_DH is None:
            whose = _PROJECTIONS[site.point][0]
            return NoUnembedding(f"the output projection of layer {site.layer}'s {whose} was not found")
    found = Unembedding(
        gain_D.to(torch.float64) + norm.offset,
        rows_VD[:n_tokens],
        centres=norm.centres,
        projection_DH=projection_DH,
        max_elements=max_elements,
    )
    return found if found.is_finite else NoUnembedding(f"'{rows}' of '{files.name}' holds NaN or infinities")


def _projection(tensors: NamedTensors, site: Site, files: ModelFiles) -> Tensor | None:
    """[D, H]: what a neuron, or a head's dimension, adds to the residual stream, as a column; the gain of a norm
    behind the MLP or attention (Gemma 2 and 3, OLMo 2 and 3) in it. None where no such tensor is found."""
    layer, shape = rf"(.*\.)?(layers|h)\.{site.layer}\.", files.architecture
    name = tensors.only(re.compile(rf"{layer}{_PROJECTIONS[site.point][1]}\.weight"), in_layers=True)
    if name is None:
        return None
    weight_DH = tensors.read(name)
    if shape.model_type == "gpt2":  # its Conv1D keeps [in, out]
        weight_DH = weight_DH.T
    width = shape.d_mlp if site.point == "neurons" else shape.d_heads
    if weight_DH.dtype not in FLOATS or weight_DH.shape != (shape.d_model, width):
        return None
    weight_DH = weight_DH.to(torch.float64)
    gain_DD = _gain_behind(tensors, site, files)
    if gain_DD is not None:
        weight_DH = weight_DH * gain_DD.diagonal()[:, None]
    return weight_DH.contiguous()


def _gain_behind(tensors: NamedTensors, site: Site, files: ModelFiles) -> Tensor | None:
    """[D, D], diagonal: the gain of the norm behind the MLP or attention; None where there is no such norm."""
    layer = rf"(.*\.)?layers\.{site.layer}\."
    behind = tensors.only(re.compile(rf"{layer}post_feedforward_layernorm\.weight"), in_layers=True)
    if behind is not None and site.point in ("z", "attn_raw"):
        # Elsewhere a norm of this name is the one in front of the MLP.
        behind = tensors.only(re.compile(rf"{layer}post_attention_layernorm\.weight"), in_layers=True)
    if behind is None:
        return None
    offset = FINAL_NORMS[files.architecture.model_type].offset
    return torch.diag(tensors.read(behind).to(torch.float64) + offset)
