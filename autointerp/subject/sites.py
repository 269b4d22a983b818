"""Hook points: from every spelling to a `Site`, and from a `Site` to where a model has it.

A site is a place in the computation, not a module: `mlp_out` is what the MLP adds to the residual stream,
which Gemma 2 and 3 and OLMo 2 and 3 send through one more norm first. TransformerLens names mean places too;
Hugging Face module paths mean modules, so what they are the name of depends on the family.

Sources: TransformerLens components/transformer_block.py and, since its version 4, what its bridge caches;
circuit-tracer's `feature_input_hook`; Gemma Scope 2's config.json. Where the points are: `families.py`.
"""

from __future__ import annotations

import re
from typing import Final, get_args

from autointerp.errors import SiteError
from autointerp.subject.architecture import Architecture
from autointerp.subject.families import BEFORE_A_NORM, FAMILIES, UNKNOWN, ModuleSite, Place
from autointerp.types import Point, Site

# --- where a model has a site ----------------------------------------------------------------------------


def locate(site: Site, model_type: str) -> Place:
    """Where a family has this site, below its layer. Raises SiteError for a point that the family doesn't
    have, and for a family without a table, unless the site is a layer's own input or output. Whether the
    model has the layer is `check_site`'s."""
    family = FAMILIES.get(model_type, UNKNOWN)
    place = family.place(site.point)
    if place is not None:
        return place
    if model_type in FAMILIES:
        has = ", ".join(
            f"'{Site(point, site.layer)}'" for point in get_args(Point) if family.place(point) is not None
        )
        raise SiteError(
            f"'{site}': the layers of a '{model_type}' model have no such place. They have {has}."
        )
    raise SiteError(
        f"where '{site}' ({site.point}) lies in a '{model_type}' model is not known, only the layers' inputs "
        f"and outputs ('layers.{site.layer}.in', 'layers.{site.layer}'). Families with all sites: "
        f"{', '.join(sorted(FAMILIES))}."
    )


def locate_to_write(site: Site, model_type: str) -> Place:
    """Where what is added reaches all that reads the site. Raises SiteError as `locate` does, and for a point
    that no module emits: there is no single place to add to.

    Between attention and MLP the residual stream is read at the norm in front of the MLP, and what is added
    there would miss the stream itself; it is the layer's input plus what attention adds, and goes there.
    """
    at = Site("attn_out", site.layer) if site.point == "resid_mid" else site
    place = locate(at, model_type)
    if place.rule is not None:
        raise SiteError(
            f"'{site}' can't be written: in a '{model_type}' model no module emits it, it is computed from "
            f"what passes '{place.at}'. Steer a dictionary of another site."
        )
    return place


def check_site(site: Site, architecture: Architecture) -> None:
    """Raises SiteError where the model has no such site."""
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
    _check_experts(site, architecture)
    locate(site, architecture.model_type)


def read_again(site: Site | None, hook: str | None, model_type: str) -> Site | None:
    """What a checkpoint's `hook` is the name of, now that the family is known: `model.layers.3.mlp.output`
    is `mlp_out` in a Llama, but `mlp_raw` in a Gemma 2. `site`: as it was read without.

    A site that the name alone doesn't give stays as it is: of a name that releases use for two places, whoever had
    a site from it knew the release. Raises SiteError for a name that this family has nothing for.
    """
    if hook is None or (site is not None and not _is_read_as(hook, site)):
        return site
    try:
        return parse_hook(hook, model_type, None if site is None else site.layer)
    except SiteError:
        if site is not None:
            locate(site, model_type)  # where it raises, it says what the family has
        raise


def _is_read_as(hook: str, site: Site) -> bool:
    try:
        return parse_hook(hook, layer=site.layer) == site
    except SiteError:
        return False


def _check_experts(site: Site, architecture: Architecture) -> None:
    has_experts = site.layer in architecture.expert_layers
    if site.point == "neurons" and has_experts:
        raise SiteError(
            f"'{site}': this layer's MLP is a mixture of {architecture.n_experts} experts, which have neurons "
            f"of their own. 'layers.{site.layer}.experts' says which of them answer a token, "
            f"'layers.{site.layer}.mlp' what they add to the stream."
        )
    if site.point == "experts" and architecture.expert_layers and not has_experts:
        raise SiteError(
            f"'{site}': this layer's MLP is dense, it has no experts. The layers that have: "
            f"{', '.join(map(str, sorted(architecture.expert_layers)))}."
        )


def width_at(site: Site, architecture: Architecture) -> int:
    """Size of an activation at this site. Raises SiteError where config.json doesn't say."""
    match site.point:
        case "neurons":
            width, what = architecture.d_mlp, "neurons its MLPs have"
        case "z":
            width, what = architecture.d_heads, "attention heads it has"
        case "experts":
            width, what = architecture.n_experts, "experts it has"
        case _:
            return architecture.d_model
    if width is None:
        raise SiteError(f"'{site}': the model's config.json doesn't say how many {what}.")
    return width


BEHIND_GAIN: Final[dict[Point, Point]] = {
    "attn_in_normalized": "attn_in",
    "mlp_in_normalized": "mlp_in",
}
"""Of points in front of a norm's gain and bias, those behind."""

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
    "ln1.hook_normalized": "attn_in_normalized",
    "attn.hook_in": "attn_in",
    "attn.hook_z": "z",
    "ln2.hook_normalized": "mlp_in_normalized",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "neurons",
}
_AS_MODULE: Final[dict[str, str]] = {"mlp.hook_out": "mlp.output"}
"""TransformerLens names of a module's own output, before a norm that may follow."""

_REFUSED: Final[dict[str, str]] = {
    "hook_mlp_in": "TransformerLens fires it before the norm, but checkpoints use the name for both sides. "
    "Say which: '{layer}.mid' is before the norm, '{layer}.mlp_in' behind it",
    "hook_attn_in": "TransformerLens fires it before the norm, where it equals '{layer}.in'. Say that if "
    "you mean it",
}
"""Names that mean different places to different people, and the reason."""

_HOOK: Final = re.compile(
    r"(?P<prefix>(?:[A-Za-z_]\w*\.)*)(?P<list>layers|h|blocks)\.(?P<layer>[0-9]{1,4})(?:\.(?P<rest>[\w.]+))?"
)
_NUMBER: Final = re.compile(r"[0-9]{1,4}")
_RELATIVE: Final = re.compile(r"[A-Za-z_][\w.]*")
_EXAMPLES: Final = (
    "'layers.3', 'layers.3.mlp', 'layers.3.neurons', 'blocks.3.hook_resid_post', 'model.layers.3', "
    "'transformer.h.3.mlp', 'gpt_neox.layers.3.mlp.input', '3'"
)


def parse_hook(text: str, model_type: str | None = None, layer: int | None = None) -> Site:
    """The site that a hook point's name means, in whatever spelling.

    Canonical (`layers.3`, `layers.3.mlp`), TransformerLens (`blocks.3.hook_mlp_out`), a module path with
    `.input` or `.output` behind it, output by default (`model.layers.3.mlp.down_proj.input`), or a layer's
    number alone (`3`), which is the residual stream behind it, as in dictionary_learning and Qwen-Scope. A
    canonical name wins over a path that reads the same: who knows that he holds a path appends the side.
    Without `model_type` a path is read by what the families agree on, but for norms that some have behind
    attention and MLP; `read_again` is for when it is known.

    `layer`: of a name that lacks one, such as circuit-tracer's `mlp.hook_in`, which is then a TransformerLens
    name or a module path; a name that has one must have this one. Raises SiteError.
    """
    if _NUMBER.fullmatch(text):
        return _in_layer(Site("resid_post", int(text)), text, layer)
    match = _HOOK.fullmatch(text)
    if match is None and (layer is None or not _RELATIVE.fullmatch(text)):
        raise SiteError(f"'{text}' is not the name of a hook point. Such names look like {_EXAMPLES}.")
    rest = _below_layer(text)
    number = layer if match is None else int(match["layer"])
    assert number is not None, "a name without a layer was refused above"
    if rest in _REFUSED:
        raise SiteError(f"hook point '{text}': {_REFUSED[rest].format(layer=f'layers.{number}')}.")
    is_canonical = match is not None and not match["prefix"] and match["list"] == "layers"
    if is_canonical and rest in _CANONICAL:
        point = _CANONICAL[rest]
    elif rest in _TRANSFORMER_LENS:
        point = _TRANSFORMER_LENS[rest]
    else:
        point = _point_of(ModuleSite.parse(_AS_MODULE.get(rest, rest)), text, model_type)
    return _in_layer(Site(point, number), text, layer)


def transformer_lens_name(site: Site) -> str | None:
    """`blocks.3.hook_resid_post`, ...; None where TransformerLens has no name for the point."""
    names = {point: name for name, point in _TRANSFORMER_LENS.items()}
    return f"blocks.{site.layer}.{names[site.point]}" if site.point in names else None


def _below_layer(text: str) -> str:
    """What stands behind the layer's number; of a name without one all of it."""
    match = _HOOK.fullmatch(text)
    return text if match is None else match["rest"] or ""


def _in_layer(site: Site, text: str, layer: int | None) -> Site:
    if layer is not None and site.layer != layer:
        raise SiteError(f"hook point '{text}' lies in layer {site.layer}, but layer {layer} was asked for.")
    return site


def _point_of(module: ModuleSite, text: str, model_type: str | None) -> Point:
    """The point that lies at a module, in this family, or in every family that has a name for it."""
    families = FAMILIES if model_type is None else {model_type: FAMILIES.get(model_type, UNKNOWN)}
    readings: dict[Point, list[str]] = {}
    for name, family in families.items():
        point = family.point_at(module)
        if point is not None and (model_type is not None or point not in BEFORE_A_NORM):
            readings.setdefault(point, []).append(name)
    if len(readings) == 1:
        return next(iter(readings))
    if readings:
        ways = "; ".join(f"{point} in {', '.join(names)}" for point, names in readings.items())
        raise SiteError(f"hook point '{text}' means different places: {ways}. Name the site yourself.")
    if model_type in FAMILIES:
        names = ", ".join(f"'{path}'" for path in FAMILIES[model_type].paths)
        raise SiteError(
            f"hook point '{text}': no site lies at '{module}' of a layer in a '{model_type}' model. Sites "
            f"lie at {names}."
        )
    raise SiteError(f"hook point '{text}' is not known. Names look like {_EXAMPLES}.")
