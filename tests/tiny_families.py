"""Tiny random models of every family whose sites are known, written to disk without any download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from autointerp.types import Point

N_LAYERS, D_MODEL, D_MLP, VOCAB, POSITIONS = 3, 16, 24, 40, 32
N_EXPERTS, N_CHOSEN = 5, 2
EPSILON = 0.25
"""Of norms: large, so that reading another one gives other numbers."""

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_RMS = {**_COMMON, "rms_norm_eps": EPSILON}
_GROUPED = {**_RMS, "num_key_value_heads": 1, "head_dim": 10}  # heads are wider than the stream: 2 * 10 > 16
_NEOX = {**_COMMON, "layer_norm_eps": EPSILON}
_UNKEYED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SLIDING = {**_GROUPED, "sliding_window": 4}
_EXPERTS = {**_SLIDING, "num_experts_per_tok": N_CHOSEN}
_QWEN_EXPERTS = {**_EXPERTS, "num_experts": N_EXPERTS, "moe_intermediate_size": 8}
_VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": N_LAYERS,  # as many as the text model has: the layer list must not be this one
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 4,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCAB,
            "n_embd": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": 2,
            "n_inner": D_MLP,
            "n_positions": POSITIONS,
            "layer_norm_epsilon": EPSILON,
        },
    ),
    "pythia": ("gpt_neox", {**_NEOX, "use_parallel_residual": True}),
    "neox": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", _SLIDING),
    "qwen2": ("qwen2", {**_RMS, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", _GROUPED),
    "phi3": ("phi3", {**_RMS, **_UNKEYED, "num_key_value_heads": 1}),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_SLIDING, "attn_logit_softcapping": 2.0}),
    "gemma3_text": ("gemma3_text", _SLIDING),
    "gemma3": (
        "gemma3",
        {"text_config": _SLIDING, "vision_config": _VISION, "mm_tokens_per_image": 4},
    ),
    "olmo": ("olmo", {**_COMMON, "num_key_value_heads": 1}),
    "olmo2": ("olmo2", {**_RMS, "num_key_value_heads": 1}),
    "olmo3": ("olmo3", {**_RMS, "num_key_value_heads": 1, "sliding_window": 4}),
    "mixtral": ("mixtral", {**_EXPERTS, "num_local_experts": N_EXPERTS}),
    "qwen3_moe": ("qwen3_moe", _QWEN_EXPERTS),
    "qwen3_moe_renormalised": ("qwen3_moe", {**_QWEN_EXPERTS, "norm_topk_prob": True}),
    "gpt_oss": ("gpt_oss", {**_EXPERTS, "num_local_experts": N_EXPERTS}),
}
SANDWICH = ("gemma2", "gemma3_text", "gemma3")
POST_NORM = ("olmo2", "olmo3")
EXPERTS = ("mixtral", "qwen3_moe", "qwen3_moe_renormalised", "gpt_oss")


def points_of(name: str) -> list[Point]:
    """What a tiny model has, said anew: this is not read from the tables that are tested."""
    lacks: set[Point] = set()
    if name == "pythia":
        lacks |= {"resid_mid"}
    if name in POST_NORM:
        lacks |= {"attn_in_normalized", "mlp_in_normalized"}
    if name not in (*SANDWICH, *POST_NORM):
        lacks |= {"attn_raw", "mlp_raw"}
    lacks |= {"neurons"} if name in EXPERTS else {"experts"}
    every: tuple[Point, ...] = get_args(Point)
    return [point for point in every if point not in lacks]


def write(name: str, folder: Path, **changes: object) -> Path:
    """A tiny model with a tokenizer. All weights are random, norms' gains too, so that no two places in it
    hold the same numbers. `changes`: to its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = CONFIGS[name]
    config = cast(Any, AutoConfig).for_model(model_type, **settings | changes)
    model = cast(Any, AutoModelForCausalLM).from_config(config)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def reference(folder: Path) -> Any:
    """The same model by transformers alone, attention computed the plain way."""
    from transformers import AutoModelForCausalLM

    loaded = cast(Any, AutoModelForCausalLM).from_pretrained(folder, attn_implementation="eager")
    return loaded.eval().requires_grad_(False)


def layers_of(model: Any) -> Any:
    """The text model's layers, by the names the families have."""
    for path in ("transformer.h", "gpt_neox.layers", "model.layers", "model.language_model.layers"):
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise AssertionError("no layers")


def tokens(n_rows: int = 2, length: int = 9) -> Tensor:
    """[B, T], no ids that a family treats as special."""
    return torch.randint(5, VOCAB, (n_rows, length), generator=torch.Generator().manual_seed(1))


def _write_tokenizer(folder: Path) -> None:
    words = {f"w{number}": number for number in range(VOCAB)}
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
