"""Hook points: from every spelling to a `Site`, and from a `Site` to a module of a model family.

A site is a place in the computation, not a module: `mlp_out` is what the MLP adds to the residual stream,
which Gemma 2 and 3 send through one more norm first. TransformerLens names mean places too; Hugging Face
module paths mean modules, so what they are the name of depends on the family.

Sources: TransformerLens components/transformer_block.py, transformers models/*/modeling_*.py (5.19).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from autointerp.errors import SiteError
from autointerp.subject.architecture import Architecture
from autointerp.types import Point, Site

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


# --- where the points are --------------------------------------------------------------------------------

Family = dict[str, Point]
"""Module and side below a layer -> point. Of several ways to a point, the first is where it is read."""

_LAYER: Final[Family] = {"input": "resid_pre", "output": "resid_post"}

_GPT2: Final[Family] = {
    "ln_2.input": "resid_mid",
    "ln_2.output": "mlp_in",
    "mlp.input": "mlp_in",
    "mlp.output": "mlp_out",
    "mlp.c_proj.output": "mlp_out",
    "mlp.c_proj.input": "neurons",
    "attn.output": "attn_out",
}
_NEOX: Final[Family] = {
    "post_attention_layernorm.input": "resid_mid",  # refused by `check_site` where attention is parallel
    "post_attention_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
    "mlp.output": "mlp_out",
    "mlp.dense_4h_to_h.output": "mlp_out",
    "mlp.dense_4h_to_h.input": "neurons",
    "attention.output": "attn_out",
}
_LLAMA: Final[Family] = {
    "post_attention_layernorm.input": "resid_mid",
    "post_attention_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
    "mlp.output": "mlp_out",
    "mlp.down_proj.output": "mlp_out",
    "mlp.down_proj.input": "neurons",
    "self_attn.output": "attn_out",
    "self_attn.o_proj.output": "attn_out",
}
_SANDWICH: Final[Family] = {  # a norm before and a norm behind attention and MLP
    "pre_feedforward_layernorm.input": "resid_mid",
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
    "mlp.down_proj.input": "neurons",
    "post_attention_layernorm.output": "attn_out",
}

FAMILIES: Final[dict[str, Family]] = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _SANDWICH),
}
"""By transformers' model_type. Every other family still has `resid_pre` and `resid_post`."""


def _all_of(family: Family) -> Family:
    return {**_LAYER, **family}


def locate(site: Site, model_type: str) -> ModuleSite:
    """Where a family has this site, below its layer. Raises SiteError for a family without a table,
    unless the site is a layer's own input or output. Whether the model has the site is `check_site`'s."""
    for text, point in _all_of(FAMILIES.get(model_type, {})).items():
        if point == site.point:
            return ModuleSite.parse(text)
    raise SiteError(
        f"where '{site}' ({site.point}) lies in a '{model_type}' model is not known, only the layers' inputs "
        f"and outputs ('layers.{site.layer}.in', 'layers.{site.layer}'). Families with all sites: "
        f"{', '.join(sorted(FAMILIES))}."
    )


def check_site(site: Site, architecture: Architecture, hook: str | None = None) -> None:
    """Raises SiteError where the model has no such site.

    `hook`: the checkpoint's own spelling that `site` was parsed from, if it was. It is read again, now that
    the family is known: `model.layers.3.mlp.output` is `mlp_out` in a Llama, but not in a Gemma 2.
    """
    if site.layer >= architecture.n_layers:
        raise SiteError(
            f"'{site}': the model has {architecture.n_layers} layers, counted from 0, so the last one is "
            f"'layers.{architecture.n_layers - 1}'."
        )
    if site.point == "resid_mid" and architecture.parallel_residual:
        raise SiteError(
            f"'{site}': attention and MLP of this '{architecture.model_type}' model read the same input, so "
            f"there is no residual stream between them. Did you mean 'layers.{site.layer}.in'?"
        )
    locate(site, architecture.model_type)
    if hook is not None and (exact := parse_hook(hook, architecture.model_type)) != site:
        raise SiteError(
            f"the dictionary's hook '{hook}' was read as '{site}', but in a '{architecture.model_type}' "
            f"model it is '{exact}'. Name the site yourself."
        )


def width_at(site: Site, architecture: Architecture) -> int:
    """Size of an activation at this site. Raises SiteError where config.json doesn't say."""
    if site.point != "neurons":
        return architecture.d_model
    if architecture.d_mlp is None:
        raise SiteError(f"'{site}': the model's config.json doesn't say how many neurons its MLPs have.")
    return architecture.d_mlp


# --- what people write -----------------------------------------------------------------------------------

_CANONICAL: Final[dict[str, Point]] = {
    str(Site(point, 0)).removeprefix("layers.0").removeprefix("."): point for point in get_args(Point)
}

_TRANSFORMER_LENS: Final[dict[str, Point]] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_mlp_out": "mlp_out",
    "hook_attn_out": "attn_out",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "neurons",
}
_AS_MODULE: Final[dict[str, str]] = {"mlp.hook_out": "mlp.output"}
"""TransformerLens names of a module's own output, before a norm that may follow."""

_HEADS: Final = "the attention heads' outputs (z) are not among the sites that can be read"
_REFUSED: Final[dict[str, str]] = {
    "hook_mlp_in": "TransformerLens fires it before the norm, but checkpoints use the name for both sides. "
    "Say which: '{layer}.mid' is before the norm, '{layer}.mlp_in' behind it",
    "hook_attn_in": "TransformerLens fires it before the norm, where it equals '{layer}.in'. Say that if "
    "you mean it",
    "ln2.hook_normalized": "it lies inside the norm, before its gain, where no module can be hooked. "
    "'{layer}.mlp_in' is behind the gain",
    "attn.hook_z": _HEADS,
    "attn.c_proj.input": _HEADS,
    "attention.dense.input": _HEADS,
    "self_attn.o_proj.input": _HEADS,
}

_HOOK: Final = re.compile(
    r"(?P<prefix>(?:[A-Za-z_]\w*\.)*)(?P<list>layers|h|blocks)\.(?P<layer>[0-9]{1,4})(?:\.(?P<rest>[\w.]+))?"
)
_EXAMPLES: Final = (
    "'layers.3', 'layers.3.mlp', 'layers.3.neurons', 'blocks.3.hook_resid_post', 'model.layers.3', "
    "'transformer.h.3.mlp', 'gpt_neox.layers.3.mlp.input'"
)


def parse_hook(text: str, model_type: str | None = None) -> Site:
    """The site that a hook point's name means, in whatever spelling.

    Canonical (`layers.3`, `layers.3.mlp`), TransformerLens (`blocks.3.hook_mlp_out`), or a module path with
    `.input` or `.output` behind it, output by default (`model.layers.3.mlp.down_proj.input`). A canonical
    name wins over a path that reads the same: who knows that he holds a path appends the side. Without
    `model_type` a path is read by what the families agree on; `check_site` reads it again. Raises SiteError.
    """
    match = _HOOK.fullmatch(text)
    if match is None:
        raise SiteError(f"'{text}' is not the name of a hook point. Such names look like {_EXAMPLES}.")
    layer, rest = int(match["layer"]), match["rest"] or ""
    if rest in _REFUSED:
        reason = _REFUSED[rest].format(layer=f"layers.{layer}")
        raise SiteError(f"hook point '{text}': {reason}.")
    if not match["prefix"] and match["list"] == "layers" and rest in _CANONICAL:
        return Site(_CANONICAL[rest], layer)
    if rest in _TRANSFORMER_LENS:
        return Site(_TRANSFORMER_LENS[rest], layer)
    module = ModuleSite.parse(_AS_MODULE.get(rest, rest))
    return Site(_point_of(module, text, model_type), layer)


def _point_of(module: ModuleSite, text: str, model_type: str | None) -> Point:
    """The point that lies at a module, in this family, or in every family that has a name for it."""
    families = FAMILIES if model_type is None else {model_type: FAMILIES.get(model_type, {})}
    readings: dict[Point, list[str]] = {}
    for name, family in families.items():
        point = _all_of(family).get(str(module))
        if point is not None:
            readings.setdefault(point, []).append(name)
    if len(readings) == 1:
        return next(iter(readings))
    if readings:
        ways = "; ".join(f"{point} in {', '.join(names)}" for point, names in readings.items())
        raise SiteError(f"hook point '{text}' means different places: {ways}. Name the site yourself.")
    if model_type in FAMILIES:
        names = ", ".join(f"'{name}'" for name in _all_of(FAMILIES[model_type]))
        raise SiteError(
            f"hook point '{text}': no site lies at '{module}' of a layer in a '{model_type}' model. Sites "
            f"lie at {names}."
        )
    raise SiteError(f"hook point '{text}' is not known. Names look like {_EXAMPLES}.")
