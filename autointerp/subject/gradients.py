"""Gradients of the subject's loss by what passes its sites.

Shapes: B rows, T tokens a row, D the width at a site, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from autointerp.errors import ModelError
from autointerp.subject.architecture import Architecture
from autointerp.subject.model import Subject
from autointerp.types import Site

CPU_HELD: Final = 2**29
GPU_HELD: Final = 2**32
"""Numbers that a backward pass may hold, about: 2 GiB in float32, 8 GiB in bfloat16."""
_NOT_FORETOLD: Final = -100


def loss_gradients(
    subject: Subject, token_ids_BT: Tensor, lengths: Sequence[int], sites: Sequence[Site]
) -> dict[Site, Tensor]:
    """Gradients [B, T, D] of the loss by the activation at each site, on the device of its layer and in the model's
    dtype. The loss is the cross-entropy in nats, summed over the tokens of a row but its first, which nothing
    foretells: so a row's gradients are its own, those of its last token are 0, and so are those of padding.

    `token_ids_BT`: int64, padded on the right; `lengths`: of the rows. The subject must have all layers. So many rows
    pass at a time as the memory above takes, one at least. On a CPU the same rows give the same bits; a GPU may add
    in another order each time. Raises SiteError for a site that can't be written, ModelError for gradients that are
    NaN or infinite.
    """
    wanted = list(dict.fromkeys(sites))
    n_tokens = token_ids_BT.shape[1]
    held = CPU_HELD if subject.device.type == "cpu" else GPU_HELD
    step = max(1, held // (n_tokens * held_a_token(subject.architecture, n_tokens)))
    pieces: dict[Site, list[Tensor]] = {site: [] for site in wanted}
    for start in range(0, len(token_ids_BT), step):
        these = slice(start, start + step)
        for site, gradient_BTD in _of_some(subject, token_ids_BT[these], lengths[these], wanted).items():
            pieces[site].append(gradient_BTD)
    return {site: torch.cat(of_one) for site, of_one in pieces.items()}


def held_a_token(architecture: Architecture, n_tokens: int) -> int:
    """Numbers that a backward pass keeps of each token of a row of so many: of a layer some 18 vectors, 4 as wide as
    its MLP, and the attention's weights in a few forms where they are written out; the logits in a few forms."""
    of_attention = 5 * (architecture.n_heads or 0) * n_tokens if architecture.attention == "eager" else 0
    of_layer = 18 * architecture.d_model + 4 * (architecture.d_mlp or 4 * architecture.d_model) + of_attention
    return architecture.n_layers * of_layer + 4 * architecture.vocab_size


# Not `enable_grad` alone: a tensor made in inference mode, as a caller's may be, can't take part.
@torch.inference_mode(False)
@torch.enable_grad()
def _of_some(
    subject: Subject, token_ids_BT: Tensor, lengths: Sequence[int], sites: list[Site]
) -> dict[Site, Tensor]:
    passed: dict[Site, Tensor] = {}

    def keep(site: Site, value: Tensor) -> Tensor:
        # Behind another site it hangs on that one's already, and what reaches that through it must count.
        passed[site] = value if value.requires_grad else value.detach().requires_grad_()
        return passed[site].clone()  # a later module may add to it in place

    ids_BT = token_ids_BT.to(subject.device, copy=True)
    is_real_BT = torch.arange(ids_BT.shape[1]) < torch.tensor(lengths)[:, None]
    with subject.hooked({}, dict.fromkeys(sites, keep)):
        logits_BTV = subject.traced_logits(ids_BT)
    wanted_BT = ids_BT.masked_fill(~is_real_BT.to(ids_BT.device), _NOT_FORETOLD)[:, 1:]
    loss = cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(),
        wanted_BT.flatten().to(logits_BTV.device),
        ignore_index=_NOT_FORETOLD,
        reduction="sum",
    )
    found = dict(zip(sites, torch.autograd.grad(loss, [passed[site] for site in sites]), strict=True))
    for site, gradient_BTD in found.items():
        if n_bad := int((~gradient_BTD.isfinite().all(dim=-1)).sum()):
            raise ModelError(
                f"the gradients of the model's loss at '{site}' are NaN or infinite on {n_bad:,} of "
                f"{sum(lengths):,} tokens. In float16 they overflow: run the model in bfloat16 or float32 (--set "
                "model.dtype=float32)."
            )
    return found
