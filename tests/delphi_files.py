"""A cache folder as delphi's `save_splits` and `save_config` write it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file


def write(
    folder: Path,
    tokens: NDArray[Any],
    locations: NDArray[np.int64],
    activations: NDArray[Any],
    borders: list[int],
    absolute: bool = False,
) -> None:
    """One hook's folder. `borders`: first latent of each file, and the width."""
    folder.mkdir(parents=True)
    for first, stop in itertools.pairwise(borders):
        mine = (locations[:, 2] >= first) & (locations[:, 2] < stop)
        part = locations[mine].copy()
        part[:, 2] -= 0 if absolute else first
        small = not len(part) or part[:, [0, 2]].max() < 2**16
        arrays = {
            "locations": part.astype(np.uint16 if small else np.uint32),
            "activations": activations[mine].astype(np.float16),
            "tokens": tokens.astype(np.int64),
        }
        save_file(arrays, folder / f"{first}_{stop - 1}.safetensors")
    said = {
        "cache_ctx_len": tokens.shape[1],
        "batch_size": 2,
        "n_splits": len(borders) - 1,
        "model_name": "m",
    }
    (folder / "config.json").write_text(json.dumps(said))
