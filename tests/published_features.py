"""Made-up sources of Neuronpedia, in both layouts: features that each fire on a word of their own."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

Json = dict[str, Any]
WORDS = [
    f" {a}{b}" for a in ("ba", "co", "du", "fe", "gi", "lo") for b in ("ra", "sto", "nik", "mal", "pe", "tu")
]
N_TOKENS = 40


def window(rng: random.Random, own: str | None, value: float, n: int = N_TOKENS) -> Json:
    """As SAEDashboard has one; `own`: the token that fires, somewhere in it."""
    tokens = [rng.choice(WORDS[12:]) for _ in range(n)]
    values = [0.0] * n
    if own is not None:
        at = rng.randrange(n)
        tokens[at], values[at] = own, value
    return {
        "bin_min": -1, "bin_max": 9.0, "bin_contains": -1, "tokens": tokens, "values": values,
        "qualifying_token_index": values.index(max(values)), "dfa_values": [], "dfa_maxValue": 0,
        "dfa_targetIndex": -1,
    }  # fmt: skip


def feature(index: int, *, n_windows: int = 30, n_silent: int = 4, frac: float | None = 0.0005) -> Json:
    rng = random.Random(index)
    own = WORDS[index % 12]
    windows = [window(rng, own, round(9.0 * (n_windows - at) / n_windows, 3)) for at in range(n_windows)]
    silent = [
        window(rng, None, 0.0) | {"bin_min": 0.0, "bin_max": 1.8, "bin_contains": 0.999}
        for _ in range(n_silent)
    ]
    return {
        "feature_index": index,
        **{f"neuron_alignment_{name}": [1, 2, 3] for name in ("indices", "values", "l1")},
        **{f"correlated_{of}_{name}": [] for of in ("neurons", "features") for name in ("indices", "l1", "pearson")},
        "neg_str": [" no", "ne"], "neg_values": [-0.5, -0.25], "pos_str": [own, "x"], "pos_values": [2.5, 0.125],
        "frac_nonzero": frac, "freq_hist_data_bar_values": [0.5, 4.0], "freq_hist_data_bar_heights": [30, 10],
        "logits_hist_data_bar_heights": [1, 2], "logits_hist_data_bar_values": [-0.1, 0.1],
        "n_prompts_total": 5000, "n_tokens_in_prompt": 128, "dataset": "org/text", "decoder_weights_dist": [],
        "activations": windows + silent,
    }  # fmt: skip


def write_dashboard(folder: Path, batches: list[list[Json]], **header: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, features in enumerate(batches):
        content = {"model_id": "tiny-model", "layer": 3, "sae_set": "res-test", "features": features} | header
        (folder / f"batch-{number}.json").write_text(json.dumps(content))
    return folder


def read_rows(path: Path) -> list[Json]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def table(folder: Path, name: str) -> list[Json]:
    """All rows of a bulk table, in the order of batches."""
    paths = sorted(
        (folder / name).glob("batch-*.jsonl.gz"), key=lambda path: int(path.name.split("-")[1].split(".")[0])
    )
    return [row for path in paths for row in read_rows(path)]
