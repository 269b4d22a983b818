"""dictionary.json of our own layout (`native.py`): what it says, checked key by key."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import Final, TypeVar, cast, get_args

from autointerp.dictionaries.checkpoint import Settings, shortened
from autointerp.dictionaries.gradient_weight import gradient_fault
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import (
    BY_DECODER,
    DictionarySpec,
    Expected,
    Selector,
    Transform,
)
from autointerp.dictionaries.steps import Pursuit, pursuit_steps
from autointerp.dictionaries.thresholds import Calibration, ColumnScore, Rule
from autointerp.dictionaries.variants import VARIANTS, Variant
from autointerp.errors import CheckpointError
from autointerp.types import Site

LAYOUT: Final = 1

SELECTORS: Final[tuple[Selector, ...]] = tuple(
    name for name in cast(tuple[Selector, ...], get_args(Selector)) if name != "custom"
)
WITH_K: Final[frozenset[Selector]] = frozenset({"topk", "abstopk", "groupmax", "pursuit"})
BY_INPUT: Final[tuple[Selector, ...]] = ("relu", "jumprelu", "topk")
OF_THE_MODEL: Final = frozenset(
    {
        "hook", "further_hooks", "model", "corpus", "context_length", "prepend_bos", "model_was_centred",
        "centring_is_default",
        "is_transcoder", "hook_out", "writes_to", "n_inputs", "n_models", "without_value_bias",
        "normalized_behind_gain",
    }
)  # fmt: skip
"""What a meta-SAE has of its parent."""
OF_THE_CODES: Final = frozenset(
    {
        "selector", "k", "transform", "decoder_norm_gate", "value_is_score", "reconstructs", "group_sizes",
        "expected", "calibration", "approximation", "notes", "variant", "pursuit", "has_signs", "gradient_weight",
        "by_input",
    }
)  # fmt: skip
OF_A_META_SAE: Final = frozenset({"parent", "parent_rows"})
KNOWN: Final = OF_THE_MODEL | OF_THE_CODES | OF_A_META_SAE | {"layout"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the tensors say."""

    d_in: int
    width: int
    d_out: int


def configured(settings: Settings, sizes: Sizes) -> DictionarySpec:
    """The identity is left empty. Raises CheckpointError."""
    _refuse_unknown(settings, KNOWN, "")
    if settings.values["layout"] != LAYOUT:
        settings.refuse("layout", f"this version of autointerp reads {LAYOUT}.")
    if settings.text("parent") is not None and (own := OF_THE_MODEL & settings.values.keys()):
        settings.refuse(min(own), "a meta-SAE has it of its parent. Leave it out.")
    width = sizes.width
    selector: Selector = _one_of(settings, "selector", SELECTORS)
    hook, hook_out = settings.text("hook"), settings.text("hook_out")
    is_transcoder = settings.flag("is_transcoder", False)
    if hook_out is not None and not is_transcoder:
        settings.refuse("hook_out", 'only a transcoder has one. Leave it out, or add "is_transcoder": true.')
    if selector in BY_DECODER:
        for key in ("is_transcoder", "decoder_norm_gate"):
            if settings.flag(key, False):
                settings.refuse(key, f"codes of selector {selector} are found with the decoder alone.")
    expected = settings.section("expected")
    _refuse_unknown(expected, {field.name for field in fields(Expected)}, "expected.")
    spec = DictionarySpec(
        format="native",
        path=settings.path.parent,
        identity="",
        d_in=sizes.d_in,
        width=width,
        selector=selector,
        k=_k(settings, selector, sizes),
        hook=hook,
        site=site_of(hook),
        model=settings.text("model"),
        corpus=settings.text("corpus"),
        context_length=settings.integer("context_length"),
        prepend_bos=settings.flag("prepend_bos", True),
        further_sites=_further_sites(settings, site_of(hook)),
        hook_out=hook_out,
        site_out=site_of(hook_out),
        d_out=sizes.d_out if is_transcoder else None,
        is_transcoder=is_transcoder,
        writes_to=settings.text("writes_to"),
        transform=_transform(settings),
        model_was_centred=settings.flag("model_was_centred", False),
        centring_is_default=settings.flag("centring_is_default", False),
        normalized_behind_gain=settings.flag("normalized_behind_gain", False),
        without_value_bias=settings.flag("without_value_bias", False),
        decoder_norm_gate=settings.flag("decoder_norm_gate", False),
        value_is_score=settings.flag("value_is_score", True),
        reconstructs=settings.flag("reconstructs", True),
        pursuit=_pursuit(settings, selector),
        n_inputs=_n_shares(settings, "n_inputs", sizes),
        n_models=_n_shares(settings, "n_models", sizes),
        by_input=_by_input(settings, selector, sizes),
        has_signs=_has_signs(settings, selector),
        group_sizes=_group_sizes(settings, width),
        expected=Expected(l0=expected.number("l0"), fvu=expected.number("fvu")),
        calibration=_calibration(settings, selector, width),
        gradient_weight=settings.number("gradient_weight"),
        approximation=settings.text("approximation"),
        notes=tuple(settings.texts("notes")),
    )
    return _as_variant(spec, settings)


def variant_of(settings: Settings) -> Variant | None:
    """What `variant` names, if it is there. Raises CheckpointError."""
    if settings.text("variant") is None:
        return None
    return VARIANTS[_one_of(settings, "variant", tuple(VARIANTS))]


def _as_variant(spec: DictionarySpec, settings: Settings) -> DictionarySpec:
    variant, name = variant_of(settings), settings.text("variant")
    if (fault := gradient_fault(spec)) is not None:
        settings.refuse("gradient_weight", f"{fault}.")
    if variant is None:
        return spec
    if variant.is_polynomial and spec.selector in BY_DECODER:
        settings.refuse("variant", f"selector {spec.selector} finds codes with a decoder that is linear.")
    if variant.selectors and spec.selector not in variant.selectors:
        settings.refuse("selector", f"of variant {name} it is {' or '.join(variant.selectors)}.")
    if variant.rule is not None and (spec.calibration is None or spec.calibration.rule != variant.rule):
        settings.refuse("calibration", f"of variant {name} it has the rule {variant.rule}.")
    left_out = None if spec.needs_gradient else variant.approximation
    return replace(
        spec,
        approximation=spec.approximation or left_out,
        reconstructs=spec.reconstructs and not variant.is_polynomial,
        notes=(f"{variant.note} ({variant.paper})", *spec.notes),
    )


def _calibration(settings: Settings, selector: Selector, width: int) -> Calibration | None:
    if settings.values.get("calibration") is None:
        return None
    section = settings.section("calibration")
    _refuse_unknown(section, {field.name for field in fields(Calibration)}, "calibration.")
    if selector != "jumprelu":
        settings.refuse("selector", "with a calibration, which finds thresholds, it is jumprelu.")
    rule: Rule = _one_of(section, "rule", cast(tuple[Rule, ...], get_args(Rule)))
    k = section.number("k")
    if k is None or not 0 < k <= width:
        section.refuse("k", f"expected a number above 0, at most the {width} features.")
    pool = section.count("pool") if rule == "sampled" else section.integer("pool")
    if pool is not None and (rule != "sampled" or pool > width):
        section.refuse("pool", f"of rule sampled, at most the {width} features.")
    found = Calibration(rule, k, pool=pool)
    if section.values.get("column_score") is not None:
        known = cast(tuple[ColumnScore, ...], get_args(ColumnScore))
        found = replace(found, column_score=_one_of(section, "column_score", known))
    if section.values.get("batch_tokens") is not None:
        found = replace(found, batch_tokens=section.count("batch_tokens"))
    return found


def _refuse_unknown(settings: Settings, known: frozenset[str] | set[str], place: str) -> None:
    for key in settings.values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(sorted(known))}."
            raise CheckpointError(f"{settings.path}: no key '{place}{shortened(key)}' is known. {hint}")


def _one_of(settings: Settings, key: str, known: tuple[T, ...]) -> T:
    by_name: dict[str, T] = {str(name): name for name in known}
    found = by_name.get(settings.text(key) or "")
    if found is None:
        settings.refuse(key, f"these are known: {', '.join(map(str, known))}.")
    return found


def _k(settings: Settings, selector: Selector, sizes: Sizes) -> int | None:
    if selector not in WITH_K:
        if settings.values.get("k") is not None:
            settings.refuse("k", f"the selector {selector} takes none.")
        return None
    if selector == "pursuit":
        ends_on_repeat = _pursuit(settings, selector).ends_on_repeat
        return pursuit_steps(settings, "k", sizes.d_in, sizes.width, ends_on_repeat=ends_on_repeat)
    k, width = settings.count("k"), sizes.width
    if k > width or (selector == "groupmax" and width % k):
        settings.refuse("k", f"it doesn't go with {width} features.")
    return k


def _pursuit(settings: Settings, selector: Selector) -> Pursuit:
    if settings.values.get("pursuit") is None:
        return Pursuit()
    section = settings.section("pursuit")
    _refuse_unknown(section, {field.name for field in fields(Pursuit)}, "pursuit.")
    if selector != "pursuit":
        settings.refuse("pursuit", f"the selector is {selector}.")
    below = section.number("residual_below") or 0.0
    if below < 0:
        section.refuse("residual_below", "expected a norm, or 0 for never.")
    return Pursuit(below, section.flag("ends_on_repeat", False))


def _n_shares(settings: Settings, key: str, sizes: Sizes) -> int:
    n = 1 if settings.values.get(key) is None else settings.count(key)
    if sizes.d_in % n:
        settings.refuse(key, f"the {sizes.d_in} numbers that are read can't be shared out so.")
    return n


def _by_input(settings: Settings, selector: Selector, sizes: Sizes) -> bool:
    by_input = settings.flag("by_input", False)
    by_norms = settings.flag("decoder_norm_gate", False) and not settings.flag("value_is_score", True)
    if by_input and (_n_shares(settings, "n_inputs", sizes) < 2 or not by_norms):
        settings.refuse(
            "by_input",
            "a crosscoder's inputs (n_inputs) select by scores of their own (decoder_norm_gate true, value_is_score "
            "false).",
        )
    if by_input and (selector not in BY_INPUT or settings.flag("is_transcoder", False)):
        settings.refuse(
            "by_input", f"it goes with the selectors {', '.join(BY_INPUT)}, and with no transcoder."
        )
    return by_input


def _has_signs(settings: Settings, selector: Selector) -> bool:
    has_signs = settings.flag("has_signs", False)
    if has_signs and selector == "abstopk":
        settings.refuse(
            "has_signs", "it is of selector pursuit, and abstopk keeps signs without it. Leave it out."
        )
    if has_signs and selector != "pursuit":
        settings.refuse(
            "has_signs", "it is of selector pursuit. Leave it out, or take abstopk for a top k by magnitude."
        )
    return has_signs


def _transform(settings: Settings) -> tuple[Transform, ...]:
    known = cast(tuple[Transform, ...], get_args(Transform))
    by_name: dict[str, Transform] = {str(step): step for step in known}
    texts = settings.texts("transform")
    if not by_name.keys() >= set(texts):
        settings.refuse("transform", f"expected a list of these: {', '.join(known)}.")
    return tuple(by_name[text] for text in texts)


def _further_sites(settings: Settings, first: Site | None) -> tuple[Site, ...]:
    found = [site_of(text) for text in settings.texts("further_hooks")]
    known = tuple(site for site in found if site is not None)
    if len(known) < len(found):
        settings.refuse("further_hooks", "expected places such as layers.12 or layers.12.mlp.")
    if len({first, *known}) <= len(known):
        settings.refuse(
            "further_hooks", f"each place is read once, and hook is {first}. Name every one once."
        )
    return known


def _group_sizes(settings: Settings, width: int) -> tuple[int, ...]:
    value = settings.values.get("group_sizes") or []
    sizes = (
        [n for n in cast(list[object], value) if type(n) is int and n > 0] if isinstance(value, list) else []
    )
    if value and (sizes != value or sum(sizes) != width):
        settings.refuse("group_sizes", f"expected numbers of features that make {width} together.")
    return tuple(sizes)
