"""A model's token embeddings in few dimensions, to compare texts by.

    rows_VD - their mean -> coordinates on the axes along which they differ most, [V, K], K <= 64

The mean is what all tokens share, so it tells no two apart. Cosines hardly notice what is dropped, and the
table is a hundredth of the model's. One scale for all: the mean squared length of a whole row is 1, so that
float16 holds any model's.

Shapes: V tokens, D = d_model, K axes; v a chunk of V.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.errors import ModelError
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.named_tensors import EMBEDDING, FLOATS, NamedTensors

MOST_AXES: Final = 64
_MAX_ELEMENTS: Final = 2**22
"""Of the largest tensor that is made in float64: 32 MiB."""


def read_token_embedding(files: ModelFiles, n_tokens: int, device: str) -> NDArray[np.float16]:
    """[V, K], from the model's weights; of a hub model they are fetched first.

    `n_tokens`: how many ids the tokenizer has; rows behind them are padding. Raises ModelError where the
    weights have no such tensor, or not as plain finite numbers.
    """
    tensors = NamedTensors(files.with_weights(), device)
    name = tensors.only(EMBEDDING)
    if name is None:
        raise _unusable(files, "have no single tensor that is the token embedding")
    rows_VD = tensors.read(name)
    if rows_VD.dtype not in FLOATS or rows_VD.ndim != 2:
        raise _unusable(files, f"hold '{name}' as {rows_VD.dtype} of shape {list(rows_VD.shape)}")
    table_VK = projected(rows_VD[:n_tokens])
    if table_VK is None:
        raise _unusable(files, f"hold NaN or infinities in '{name}'")
    return table_VK


def _unusable(files: ModelFiles, what: str) -> ModelError:
    return ModelError(
        f"sampling.n_embedding compares windows by token embeddings, but the weights of '{files.name}' {what}. "
        f"Go on without: --set sampling.n_embedding=0"
    )


@torch.no_grad()
def projected(rows_VD: Tensor, most_axes: int = MOST_AXES) -> NDArray[np.float16] | None:
    """[V, K], the axis of the largest variance first; None where a row is not finite."""
    n_tokens, d_model = rows_VD.shape
    chunks_vD = rows_VD.split(max(1, _MAX_ELEMENTS // d_model))
    mean_D = (
        torch.stack([chunk_vD.to(torch.float64).sum(dim=0) for chunk_vD in chunks_vD]).sum(dim=0) / n_tokens
    )
    gram_DD = torch.zeros(d_model, d_model, dtype=torch.float64, device=rows_VD.device)
    for chunk_vD in chunks_vD:
        centred_vD = chunk_vD.to(torch.float64) - mean_D
        gram_DD += centred_vD.T @ centred_vD
    if not bool(torch.isfinite(gram_DD).all()):
        return None
    axes_DK = np.linalg.eigh(gram_DD.cpu().numpy()).eigenvectors[:, ::-1][:, :most_axes]
    largest_K = np.abs(axes_DK).argmax(axis=0)  # an axis has no sign of its own
    axes_DK = axes_DK * np.sign(axes_DK[largest_K, np.arange(axes_DK.shape[1])])
    scale = float(gram_DD.trace() / n_tokens) ** 0.5 or 1.0
    to_axes_DK = torch.from_numpy(axes_DK / scale).to(rows_VD.device)
    coordinates = [(chunk_vD.to(torch.float64) - mean_D) @ to_axes_DK for chunk_vD in chunks_vD]
    return torch.cat(coordinates).to(torch.float16).cpu().numpy()
