"""A dictionary that nobody trained: what a score is worth is what it has above this one's.

    random-topk:WIDTH:K         unit rows in random directions, the encoder tied to them, of each token the K
    random-topk:WIDTH:K:SEED    largest that are positive (the control of arXiv 2410.13928, section 4)

It reads any site: the length of its rows is known with the model. A row's numbers depend on seed, feature and
coordinate alone. Shapes: F = width, D = d_in, f a block of F.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import CheckpointError
from autointerp.types import digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME: Final = re.compile(r"random-topk:(\d+):(\d+)(?::(\d+))?")
_MOST_NUMBERS: Final = 2**20
"""Made at once: 8 MiB of hashes."""


def name(width: int, k: int, seed: int) -> str:
    """What `--sae` takes."""
    return f"random-topk:{width}:{k}:{seed}"


@dataclass(frozen=True, slots=True)
class RandomTopk:
    """No checkpoint: `random-topk:16384:32`, random directions, of each token the 32 largest."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        return False

    def describe(self, path: Path) -> DictionarySpec:
        """`path` is the name. Raises CheckpointError."""
        width, k, seed = _read(str(path))
        if not 1 <= k <= width:
            raise CheckpointError(
                f"'{path}': of {width} features a token can't have {k}; write from 1 to {width}."
            )
        return DictionarySpec(
            format="random_topk",
            path=path,
            identity=digest("random-topk", self.version, width, k, seed),
            d_in=0,
            width=width,
            selector="topk",
            k=k,
            hook=None,
            site=None,
            model=None,
            corpus=None,
            context_length=None,
            prepend_bos=True,
            reconstructs=False,  # it was never meant to, so there is no fit to check
        )

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        import torch

        _, _, seed = _read(str(spec.path))
        w_dec_FD = torch.from_numpy(unit_rows(spec.width, spec.d_in, seed)).to(device)
        return Weights(
            w_enc_DF=w_dec_FD.T.contiguous(),
            b_enc_F=torch.zeros(spec.width, device=device),
            b_pre_D=torch.zeros(spec.d_in, device=device),
            w_dec_FO=w_dec_FD,
            b_dec_O=torch.zeros(spec.d_in, device=device),
        )


def _read(text: str) -> tuple[int, int, int]:
    """Width, k and seed."""
    match = NAME.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"'{text}' names no random dictionary: write random-topk:WIDTH:K or random-topk:WIDTH:K:SEED."
        )
    return int(match[1]), int(match[2]), int(match[3] or 0)


def unit_rows(width: int, d_in: int, seed: int) -> NDArray[np.float32]:
    """[F, D], each row uniform on the sphere: normal numbers (Box and Muller 1958), scaled to length 1."""
    # Here, not above: names are looked up in this module, and `sae inspect` needs no numpy, half of its time.
    import numpy as np

    from autointerp import draw

    rows_FD = np.empty((width, d_in), np.float32)
    column_D = np.arange(d_in, dtype=np.uint64)
    keys = [draw.key(seed, "random-topk", half) for half in ("radius", "angle")]
    step = max(1, _MOST_NUMBERS // d_in)
    for begin in range(0, width, step):
        row_f = np.arange(begin, min(begin + step, width), dtype=np.uint64)
        items_fD = (row_f[:, None] << np.uint64(32)) + column_D
        radius_fD, angle_fD = (draw.unit_interval(draw.mix(key, items_fD)) for key in keys)
        normal_fD = np.sqrt(-2 * np.log1p(-radius_fD)) * np.cos(2 * np.pi * angle_fD)
        rows_FD[begin : begin + step] = normal_fD / np.linalg.norm(normal_fD, axis=1, keepdims=True)
    return rows_FD
