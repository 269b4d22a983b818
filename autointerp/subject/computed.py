"""Activations that no module emits, computed from what passes one.

Shapes: B rows, T tokens a row, D = d_model, N = B * T, E experts, K of them chosen for a token.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from autointerp.errors import SiteError
from autointerp.subject.families import Rule


def value_of(passed: Any, module: nn.Module, rule: Rule | None) -> Tensor:
    """The activation that what passed a module holds: [B, T, D], of `routing` [N, E].

    `passed`: an input, or an output as the module returned it; of a tuple (attention, mixtures of experts,
    layers in some versions of transformers) the first element is meant. Raises SiteError where the module is
    not of the kind that the rule is for.
    """
    if rule == "routing":
        return _expert_weights(passed, module)
    x_BTD = cast(Tensor, passed[0] if isinstance(passed, tuple) else passed)
    match rule:
        case None:
            return x_BTD
        case "rms":
            return _rms_normalized(x_BTD, _epsilon(module))
        case "layer_norm":
            return nn.functional.layer_norm(x_BTD, x_BTD.shape[-1:], eps=_epsilon(module))


def replaced(passed: Any, new: Tensor | None) -> Any:
    """What a module returned, with `new` for its activation; None, which changes nothing, where that is None."""
    if new is None:
        return None
    return (new, *passed[1:]) if isinstance(passed, tuple) else new


def _rms_normalized(x_BTD: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon): what RMSNorm multiplies by its gain. In float32, as all families do it,
    and back in the dtype that it came in."""
    wide_BTD = x_BTD.to(torch.float32)
    mean_square_BT1 = wide_BTD.pow(2).mean(-1, keepdim=True)
    return (wide_BTD * torch.rsqrt(mean_square_BT1 + epsilon)).to(x_BTD.dtype)


def _epsilon(norm: nn.Module) -> float:
    """A norm's own: `variance_epsilon` in Llama and its like, `eps` in Gemma and torch's LayerNorm."""
    for name in ("variance_epsilon", "eps"):
        value = getattr(norm, name, None)
        if isinstance(value, float):
            return value
    raise SiteError(
        f"the norm '{type(norm).__name__}' of this version of transformers keeps its epsilon in no place that "
        f"is known here, so its output before the gain can't be computed. Read the site behind the gain."
    )


def _expert_weights(passed: Any, router: nn.Module) -> Tensor:
    """What each expert's output is multiplied by, 0 for those not chosen.

    Routers return (logits [N, E], weights of the chosen [N, K], which they are [N, K]). The weights are the
    family's own: Mixtral and Qwen3-MoE take a softmax over all, then the K largest (renormalised, in
    Qwen3-MoE if the configuration says so); GPT-OSS takes the K largest, then a softmax over them.
    """
    match passed:
        case (Tensor() as logits_NE, Tensor() as weights_NK, Tensor() as chosen_NK) if (
            weights_NK.shape == chosen_NK.shape and chosen_NK.dtype == torch.int64
        ):
            zeros_NE = torch.zeros_like(logits_NE)  # in the model's dtype; Mixtral's weights are float32
            return zeros_NE.scatter(-1, chosen_NK, weights_NK.to(zeros_NE.dtype))
        case _:
            raise SiteError(
                f"the router '{type(router).__name__}' of this version of transformers doesn't return logits, "
                f"weights and experts, so the experts' weights can't be read. Use transformers 5.19."
            )
