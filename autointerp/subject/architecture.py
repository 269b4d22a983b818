"""The shape of a model, from its config.json. No torch: the command line reads this.

transformers' own configuration classes would say the same, but importing them imports torch and takes
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import orjson

from autointerp.errors import ModelError
from autointerp.types import Json

_GEMMA_3: Final[Json] = {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 8,
    "head_dim": 256,
}
_DEFAULTS: Final[dict[str, Json]] = {
    "gemma": {"head_dim": 256},
    "gemma2": {"attn_logit_softcapping": 50.0, "head_dim": 256},
    "gemma3": _GEMMA_3,
    "gemma3_text": _GEMMA_3,
    "gpt_oss": {"head_dim": 64},
    "qwen3": {"head_dim": 128},
}
"""What published config.json files leave out because transformers knows the family's value."""

_LAYER_NORM: Final = frozenset(
    "bloom codegen cohere cohere2 falcon gpt2 gpt_bigcode gpt_neo gpt_neox gptj mpt olmo opt phi "
    "stablelm starcoder2".split()
)
_RMS_NORM: Final = frozenset(
    "gemma gemma2 gemma3 gemma3_text glm glm4 gpt_oss granite llama ministral mistral mixtral olmo2 olmo3 phi3 qwen2 "
    "qwen2_moe qwen3 qwen3_moe smollm3".split()
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a language model; of a multimodal one, of its text part."""

    model_type: str
    """transformers' name of the family, which says where the sites are."""
    d_model: int
    n_layers: int
    d_mlp: int | None
    """Hidden neurons of a dense layer's MLP; None if config.json doesn't say."""
    d_heads: int | None
    """Width of all attention heads together, which isn't d_model in every family; None if config.json
    doesn't say."""
    n_heads: int | None
    """Attention heads (of queries); None if config.json doesn't say."""
    n_experts: int | None
    """Experts of a layer that has any; None in a dense model."""
    expert_layers: frozenset[int]
    """Layers whose MLP is a mixture of experts; empty in a dense model, and in families whose experts are
    not read."""
    vocab_size: int
    """Rows of the embedding, often more than the tokenizer has tokens."""
    max_positions: int | None
    """Longest context in tokens; None if there is no limit in config.json."""
    attention: Literal["eager", "sdpa"]
    """Which of transformers' implementations gives right results: soft-capped attention logits (Gemma 2)
    and sinks (GPT-OSS) exist only in `eager`."""
    parallel_residual: bool
    """Attention and MLP read the same input, so there is no stream between them."""
    bos_token_id: int | None
    eos_token_id: int | None
    """As config.json has them, the first where there are several; None if it doesn't say."""

    @property
    def has_layer_norm(self) -> bool | None:
        """LayerNorm (True) or RMSNorm (False) in its blocks; None of a family of which that isn't known here."""
        return True if self.model_type in _LAYER_NORM else False if self.model_type in _RMS_NORM else None

    @classmethod
    def read(cls, config: Path) -> Architecture:
        """Reads a config.json. Raises ModelError."""
        try:
            content = orjson.loads(config.read_bytes())
        except OSError as error:
            raise ModelError(f"{config} can't be read: {error.strerror}.") from error
        except orjson.JSONDecodeError as error:
            raise ModelError(f"{config} is not JSON: {error}.") from error
        if not isinstance(content, dict):
            raise ModelError(f"{config} is no model's configuration: it holds no JSON object.")
        return cls.of(cast(Json, content), str(config))

    @classmethod
    def of(cls, config: Json, source: str) -> Architecture:
        """From the content of a config.json; `source` is what an error calls it. Raises ModelError."""
        nested = config.get("text_config")
        text = cast(Json, nested) if isinstance(nested, dict) else config
        model_type = text.get("model_type") or config.get("model_type")
        if not isinstance(model_type, str):
            raise ModelError(f"{source} has no 'model_type', so it is no transformers model.")
        known = {**_DEFAULTS.get(model_type, {}), **text}
        d_model = _needed(known, ("hidden_size", "n_embd", "d_model"), source)
        d_mlp = _number(known, ("intermediate_size", "n_inner", "ffn_dim"))
        if d_mlp is None and model_type == "gpt2":
            d_mlp = 4 * d_model
        n_layers = _needed(known, ("num_hidden_layers", "n_layer", "n_layers"), source)
        n_heads = _number(known, ("num_attention_heads", "n_head"))
        capped = known.get("attn_logit_softcapping") is not None
        return cls(
            model_type=model_type,
            d_model=d_model,
            n_layers=n_layers,
            d_mlp=d_mlp,
            d_heads=n_heads and n_heads * (_number(known, ("head_dim",)) or d_model // n_heads),
            n_heads=n_heads,
            n_experts=_number(known, ("num_local_experts", "num_experts")),
            expert_layers=_expert_layers(model_type, known, n_layers),
            vocab_size=_needed(known, ("vocab_size",), source),
            max_positions=_number(known, ("max_position_embeddings", "n_positions", "max_seq_len")),
            attention="eager" if capped or model_type == "gpt_oss" else "sdpa",
            parallel_residual=model_type == "gpt_neox" and known.get("use_parallel_residual", True) is True,
            bos_token_id=_token_id(text, config, "bos_token_id"),
            eos_token_id=_token_id(text, config, "eos_token_id"),
        )


def _number(config: Json, names: Sequence[str]) -> int | None:
    """The first of these fields that holds a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _expert_layers(model_type: str, config: Json, n_layers: int) -> frozenset[int]:
    """All of Mixtral's and GPT-OSS's; of Qwen3-MoE those that its config.json doesn't make dense (in
    transformers the decoder layer's constructor)."""
    if model_type in ("mixtral", "gpt_oss"):
        return frozenset(range(n_layers))
    if model_type != "qwen3_moe":
        return frozenset()
    step = _number(config, ("decoder_sparse_step",)) or 1
    listed = config.get("mlp_only_layers")
    dense = cast(list[object], listed) if isinstance(listed, list) else []
    return frozenset(layer for layer in range(n_layers) if (layer + 1) % step == 0 and layer not in dense)


def _needed(config: Json, names: Sequence[str], source: str) -> int:
    value = _number(config, names)
    if value is None:
        raise ModelError(f"{source} has no positive number '{names[0]}' (nor {', '.join(names[1:]) or '-'}).")
    return value


def _token_id(text: Json, config: Json, name: str) -> int | None:
    value = text.get(name, config.get(name))
    if isinstance(value, list) and value:
        value = cast(list[object], value)[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None
