"""Where each model family has its points: tables, and nothing else.

A layer's modules are called differently in every family, and what a module's output means differs too: of
a Gemma 2 the MLP's own output is not yet what it adds to the stream, because one more norm follows. OLMo 2
and 3 have no norm in front of attention and MLP, only behind them.

Source: transformers models/*/modeling_*.py (5.19). Checked point by point against hooks written by hand, and
against TransformerLens' cache (tests/test_families.py, tests/test_parity.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from autointerp.types import Point

Side = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class ModuleSite:
    """A module's input or output. An output that is a tuple means its first element."""

    module: str
    """Path below the layer, `mlp.down_proj`; empty for the layer itself."""
    side: Side

    @classmethod
    def parse(cls, text: str) -> ModuleSite:
        """From `mlp.down_proj.input`, `output`, ...; a path with no side means the output."""
        module, _, last = text.rpartition(".")
        return cls(module, last) if last in ("input", "output") else cls(text, "output")

    def __str__(self) -> str:
        return f"{self.module}.{self.side}" if self.module else self.side


Rule = Literal["rms", "layer_norm", "routing"]
"""How a point that no module emits is had from what passes one (`computed.py`). `rms`, `layer_norm`: the
input of a norm, normalised as that norm does it, but without its gain and bias. `routing`: a router's
weights of the experts it chose, zero for the others."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a point is read in a layer."""

    at: ModuleSite
    rule: Rule | None = None
    """None: what passes there is the activation itself."""


@dataclass(frozen=True, slots=True)
class Family:
    """Where the layers of one family have their points. What is in neither table, the family doesn't have."""

    emitted: dict[Point, tuple[str, ...]]
    """Modules and sides that the activations of a point pass. It is read at the first. A place that holds
    two points at once (the MLP's input in OLMo 2 is the residual stream) is the name of the earlier one."""
    computed: dict[Point, tuple[str, Rule]] = field(default_factory=dict[Point, tuple[str, Rule]])

    def place(self, point: Point) -> Place | None:
        """Where a point is read; None where the family doesn't have it."""
        if point in self.emitted:
            return Place(ModuleSite.parse(self.emitted[point][0]))
        if point in self.computed:
            text, rule = self.computed[point]
            return Place(ModuleSite.parse(text), rule)
        return None

    def point_at(self, module: ModuleSite) -> Point | None:
        """What a module path is the name of; None where no point lies there."""
        return next((point for point, places in self.emitted.items() if str(module) in places), None)

    @property
    def paths(self) -> list[str]:
        """Every module path that is the name of a point."""
        return list(dict.fromkeys(path for places in self.emitted.values() for path in places))


BEFORE_A_NORM: Final[frozenset[Point]] = frozenset({"attn_raw", "mlp_raw"})
"""Points at modules whose output is what they add to the stream in all other families."""

_LAYER: Final[dict[Point, tuple[str, ...]]] = {"resid_pre": ("input",), "resid_post": ("output",)}

UNKNOWN: Final = Family(_LAYER)
"""Of a family without a table: layers have an input and an output, whatever they are called."""

_GPT2: Final = Family(
    emitted={
        "resid_pre": ("input", "ln_1.input"),
        "resid_mid": ("ln_2.input",),
        "resid_post": ("output",),
        "attn_in": ("ln_1.output", "attn.input"),
        "z": ("attn.c_proj.input",),
        "attn_out": ("attn.output", "attn.c_proj.output"),
        "mlp_in": ("ln_2.output", "mlp.input"),
        "neurons": ("mlp.c_proj.input",),
        "mlp_out": ("mlp.output", "mlp.c_proj.output"),
    },
    computed={
        "attn_in_normalized": ("ln_1.input", "layer_norm"),
        "mlp_in_normalized": ("ln_2.input", "layer_norm"),
    },
)
_NEOX: Final = Family(
    emitted={
        "resid_pre": ("input", "input_layernorm.input"),
        "resid_mid": ("post_attention_layernorm.input",),  # `check_site` refuses it in parallel layers
        "resid_post": ("output",),
        "attn_in": ("input_layernorm.output", "attention.input"),
        "z": ("attention.dense.input",),
        "attn_out": ("attention.output", "attention.dense.output"),
        "mlp_in": ("post_attention_layernorm.output", "mlp.input"),
        "neurons": ("mlp.dense_4h_to_h.input",),
        "mlp_out": ("mlp.output", "mlp.dense_4h_to_h.output"),
    },
    computed={
        "attn_in_normalized": ("input_layernorm.input", "layer_norm"),
        "mlp_in_normalized": ("post_attention_layernorm.input", "layer_norm"),
    },
)
_ATTENTION: Final[dict[Point, tuple[str, ...]]] = {  # of every family below, with a norm in front
    "resid_pre": ("input", "input_layernorm.input"),
    "resid_post": ("output",),
    "attn_in": ("input_layernorm.output", "self_attn.input"),
    "z": ("self_attn.o_proj.input",),
}
_PRE_NORM: Final[dict[Point, tuple[str, ...]]] = {
    **_ATTENTION,
    "resid_mid": ("post_attention_layernorm.input",),
    "attn_out": ("self_attn.output", "self_attn.o_proj.output"),
    "mlp_in": ("post_attention_layernorm.output", "mlp.input"),
}
_DENSE: Final[dict[Point, tuple[str, ...]]] = {
    **_PRE_NORM,
    "neurons": ("mlp.down_proj.input",),
    "mlp_out": ("mlp.output", "mlp.down_proj.output"),
}
_PRE_NORM_RMS: Final[dict[Point, tuple[str, Rule]]] = {
    "attn_in_normalized": ("input_layernorm.input", "rms"),
    "mlp_in_normalized": ("post_attention_layernorm.input", "rms"),
}
_LLAMA: Final = Family(_DENSE, _PRE_NORM_RMS)
_OLMO: Final = Family(  # its norms have no gain
    {
        **_DENSE,
        "attn_in_normalized": ("input_layernorm.output",),
        "mlp_in_normalized": ("post_attention_layernorm.output",),
    }
)
_EXPERTS: Final = Family(
    {**_PRE_NORM, "mlp_out": ("mlp.output",)},
    {**_PRE_NORM_RMS, "experts": ("mlp.gate.output", "routing")},
)
_MIXTRAL: Final = Family(  # its MLP was called block_sparse_moe until transformers 5
    {
        **_PRE_NORM,
        "mlp_in": (*_PRE_NORM["mlp_in"], "block_sparse_moe.input"),
        "mlp_out": ("mlp.output", "block_sparse_moe.output"),
    },
    _EXPERTS.computed,
)
_QWEN_EXPERTS: Final = Family(_DENSE, _EXPERTS.computed)  # some of its layers may be dense
_GPT_OSS: Final = Family(_EXPERTS.emitted, {**_EXPERTS.computed, "experts": ("mlp.router.output", "routing")})
_RAW: Final[dict[Point, tuple[str, ...]]] = {  # of families with a norm behind attention and MLP
    "attn_raw": ("self_attn.output", "self_attn.o_proj.output"),
    "mlp_raw": ("mlp.output", "mlp.down_proj.output"),
}
_SANDWICH: Final = Family(  # a norm before and a norm behind attention and MLP
    emitted={
        **_ATTENTION,
        **_RAW,
        "resid_mid": ("pre_feedforward_layernorm.input",),
        "attn_out": ("post_attention_layernorm.output",),
        "mlp_in": ("pre_feedforward_layernorm.output", "mlp.input"),
        "neurons": ("mlp.down_proj.input",),
        "mlp_out": ("post_feedforward_layernorm.output",),
    },
    computed={
        "attn_in_normalized": ("input_layernorm.input", "rms"),
        "mlp_in_normalized": ("pre_feedforward_layernorm.input", "rms"),
    },
)
_POST_NORM: Final = Family(  # norms behind attention and MLP only: both read the stream as it is
    emitted={
        **_RAW,
        "resid_pre": ("input",),
        "resid_post": ("output",),
        "attn_in": ("self_attn.input",),
        "z": ("self_attn.o_proj.input",),
        "attn_out": ("post_attention_layernorm.output",),
        "mlp_in": ("mlp.input",),
        "resid_mid": ("mlp.input",),
        "neurons": ("mlp.down_proj.input",),
        "mlp_out": ("post_feedforward_layernorm.output",),
    },
)

FAMILIES: Final[dict[str, Family]] = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _SANDWICH),
    "olmo": _OLMO,
    **dict.fromkeys(("olmo2", "olmo3"), _POST_NORM),
    "mixtral": _MIXTRAL,
    "qwen3_moe": _QWEN_EXPERTS,
    "gpt_oss": _GPT_OSS,
}
"""By transformers' model_type."""
