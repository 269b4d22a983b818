"""A tiny subject model, dictionary and corpus, made in a second: what tests of the whole line run on."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from autointerp.types import Json

WIDTH = 208
D_MODEL = WIDTH // 2
CONTEXT = 64

_WORDS = """the a cat dog bird fish ran sat flew swam over under river hill red blue small large quickly
slowly and but then because if import def return class self value list number music night day sun moon
rain snow wind tree leaf stone road house door window table chair book page word letter""".split()


@dataclass(frozen=True)
class Tiny:
    """Paths of a model, a dictionary and a corpus that fit together."""

    model: Path
    sae: Path
    corpus: Path

    def recipe(self, **sections: object) -> Json:
        """A recipe on them, small enough for a test; sections given replace."""
        return {
            "dictionaries": {"auto": {"path": str(self.sae)}},
            "model": {"path": str(self.model)},
            "corpus": {"path": str(self.corpus)},
            "cache": {"n_tokens": 20_000, "shard_tokens": 4096},
            "sampling": {"minimum": 20, "minimum_full": 60},
            "features": {"n": 40},
            "llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}},
            "controls": None,
        } | sections


def make(folder: Path) -> Tiny:
    documents = _documents()
    made = Tiny(folder / "model", folder / "sae", folder / "corpus.txt")
    made.corpus.write_text("<|endoftext|>".join(documents), encoding="utf-8")
    _tokenizer(documents).save_pretrained(made.model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=D_MODEL, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made.model)
    make_sae(made.sae)
    return made


def make_sae(folder: Path, d_in: int = D_MODEL, hook: str | None = "blocks.1.hook_resid_post") -> None:
    """Both directions of every axis of a rotated basis: reconstructs well, and every feature is alive."""
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator))
    rows = torch.cat([basis, -basis]).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "W_enc": rows.T.contiguous(),
            "b_enc": torch.zeros(2 * d_in),
            "W_dec": rows,
            "b_dec": torch.zeros(d_in),
        },
        folder / "sae_weights.safetensors",
    )
    metadata = {"model_name": "tiny", "context_size": CONTEXT, "prepend_bos": True}
    if hook:
        metadata["hook_name"] = hook
    config = {
        "architecture": "topk", "d_in": d_in, "d_sae": 2 * d_in, "k": 24, "dtype": "float32",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": metadata,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))


def _documents() -> list[str]:
    rng = random.Random(0)
    return [
        " ".join(rng.choices(_WORDS, k=rng.randint(20, 120))).capitalize() + f". Story {number}."
        for number in range(400)
    ]


def _tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
