"""A model, a TopK dictionary and a corpus of a given size, made up: what `bench cache` runs on. Made in a process of
its own: `python -m autointerp.bench.material FOLDER SIZE N_TOKENS`, which prints the recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from autointerp import demo
from autointerp.bench.size import Size


def make_material(folder: Path, size: Size, n_tokens: int) -> dict[str, Any]:
    """Writes `model/`, `dictionary/` and `corpus.txt`; the recipe that runs on them."""
    torch.manual_seed(0)
    mean_D = _make_model(folder / "model", size)
    _make_dictionary(folder / "dictionary", size, mean_D)
    _make_corpus(folder / "corpus.txt", n_tokens)
    return {
        "dictionaries": {"bench": {"path": str(folder / "dictionary"), "hook": f"layers.{size.layer}"}},
        "model": {"path": str(folder / "model")},
        "corpus": {"path": str(folder / "corpus.txt")},
        "cache": {"n_tokens": n_tokens, "context_length": size.context_length, "prepend_bos": True},
    }


def _make_model(folder: Path, size: Size) -> Tensor:
    """The mean of what leaves the layer [d_model]."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(demo.MODEL))
    tokenizer.save_pretrained(folder)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.d_model,
        intermediate_size=4 * size.d_model,
        num_hidden_layers=size.n_layers,
        num_attention_heads=max(1, size.d_model // 64),
        max_position_embeddings=max(2_048, size.context_length),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = cast(Any, GPTNeoXForCausalLM(config))
    model.save_pretrained(folder)
    with torch.no_grad():
        found = model(torch.randint(0, len(tokenizer), (8, size.context_length)), output_hidden_states=True)
    return found.hidden_states[size.layer + 1].mean((0, 1))


def _make_dictionary(folder: Path, size: Size, mean_D: Tensor) -> None:
    """Random directions and their transposes, scaled so far down that what is added up lies nearer to the
    input than nothing does: the check of a dictionary that fits passes."""
    directions = torch.nn.functional.normalize(torch.randn(size.width, size.d_model), dim=1)
    folder.mkdir(parents=True)
    save_file(
        {
            "encoder.weight": directions,
            "encoder.bias": torch.zeros(size.width),
            "W_dec": directions * 0.03,
            "b_dec": mean_D,
        },
        folder / "sae.safetensors",
    )
    config = {"d_in": size.d_model, "num_latents": size.width, "k": size.k, "activation": "topk"}
    (folder / "cfg.json").write_text(json.dumps(config))


def _make_corpus(path: Path, n_tokens: int) -> None:
    """Documents of random words of the demo's vocabulary, somewhat more tokens than asked for."""
    vocabulary: dict[str, int] = json.loads((demo.MODEL / "tokenizer.json").read_text())["model"]["vocab"]
    words = np.array([word[1:] for word in vocabulary if word[:1] == "Ġ" and word[1:].isalpha()])
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(-(-n_tokens // 900)):
            file.write(" " + " ".join(rng.choice(words, 1_000)) + "<|endoftext|>")


if __name__ == "__main__":
    _recipe = make_material(Path(sys.argv[1]), Size(**json.loads(sys.argv[2])), int(sys.argv[3]))
    sys.stdout.write(json.dumps(_recipe) + "\n")
