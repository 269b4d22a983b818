"""What a SAELens cfg.json says, whatever version wrote it.

Source: decoderesearch/SAELens 6.54.12: sae_lens/saes/*.py, and loading/pretrained_sae_loaders.py for files
from before version 6.

    version 6          nested: `metadata.hook_name`, `metadata.model_name`, ..., `k`
    before version 6   flat: `hook_name` or `hook_point`, ...; a TopK dictionary calls itself
                       `architecture: standard` with `activation_fn_str: topk`

Defaults where a key is absent are SAELens' own: `apply_b_dec_to_input` and `prepend_bos` are true.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final, cast

from autointerp.dictionaries import saelens_model, saelens_poly, saelens_temporal, temporal
from autointerp.dictionaries.checkpoint import Settings, read_settings, shortened
from autointerp.dictionaries.origin import hub_name, site_of
from autointerp.dictionaries.saelens_model import hook_of, is_behind_gain, was_centred
from autointerp.dictionaries.saelens_temporal import RESCALE, TEMPORAL
from autointerp.dictionaries.saelens_whitening import FILE, WHITENING, whitening_file
from autointerp.dictionaries.spec import DictionarySpec, Expected, Selector, Transform
from autointerp.dictionaries.steps import Pursuit, pursuit_steps
from autointerp.errors import CheckpointError

CONFIG: Final = "cfg.json"
SCALER: Final = "activation_scaler.json"
"""Beside the weights of a training checkpoint: the factor that `expected_average_only_in` speaks of."""

SELECTORS: Final[dict[str, Selector]] = {
    "standard": "relu",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abstopk",
    "matching_pursuit": "pursuit",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""But of `temporal`, whose settings say which."""
BATCH_TOPK: Final = ("batchtopk", "matryoshka_batchtopk")
"""Training dumps: SAELens exports these as jumprelu dictionaries, with the threshold tracked in training."""
SKIP: Final = ("skip_transcoder", "jumprelu_skip_transcoder")
TRANSCODERS: Final = ("transcoder", "jumprelu_transcoder", *SKIP)
BY_DECODER_NORM: Final = ("topk", "abstopk", *BATCH_TOPK)
"""Architectures that have `rescale_acts_by_decoder_norm`."""

TRANSFORMS: Final[dict[str, tuple[Transform, ...]]] = {
    "none": (),
    "layer_norm": ("layer_norm",),
    "constant_norm_rescale": ("constant_norm",),
}
AVERAGE: Final = "expected_average_only_in"

KEPT: Final = "autointerp"
"""Below this key of `metadata`, which takes any, `sae convert` keeps what SAELens has no key for: what the checkpoint
that it read states of itself, and its format's conventions."""

ARCHITECTURES: Final = (*SELECTORS, TEMPORAL, *saelens_poly.BASES)
READ: Final = f"Of SAELens' architectures these are read: {', '.join(ARCHITECTURES)}."


def configured(folder: Path) -> DictionarySpec:
    """What cfg.json says, and the scaler's file beside it; the identity is left empty. Raises CheckpointError."""
    settings = read_settings(folder / CONFIG)
    # One look-up for both layouts: what version 6 nests lies flat before it.
    origin = Settings(settings.path, settings.values | settings.section("metadata").values)
    kept = origin.section(KEPT)
    selector, k = _selector(settings)
    kind, is_poly = architecture(settings), saelens_poly.is_polynomial(settings)
    is_transcoder = kind in TRANSCODERS
    _refuse_what_is_not_read(settings, origin, is_transcoder)
    whitening_file(settings)
    hook, hook_out = hook_of(origin), origin.text("hook_name_out") if is_transcoder else None
    width = settings.count("d_sae")
    pursuit = _pursuit(settings)
    if k is not None and selector == "pursuit":
        ends_on_repeat = pursuit.ends_on_repeat
        pursuit_steps(
            settings, "max_iterations", settings.count("d_in"), width, ends_on_repeat=ends_on_repeat
        )
    elif k is not None and k > width:
        raise CheckpointError(f"{settings.path}: k is {k}, more than the {width} features (d_sae).")
    gate = saelens_poly.has_norms(settings)
    if gate and kind not in BY_DECODER_NORM:
        settings.refuse(
            "rescale_acts_by_decoder_norm", f"this is read for {', '.join(BY_DECODER_NORM)} only."
        )
    return DictionarySpec(
        format="saelens",
        path=folder,
        identity="",
        d_in=settings.count("d_in"),
        width=width,
        selector=selector,
        k=k,
        hook=hook,
        site=site_of(hook),
        model=hub_name(origin.text("model_name")),
        corpus=origin.text("dataset_path"),
        context_length=origin.integer("context_size"),
        prepend_bos=origin.flag("prepend_bos", True),
        hook_out=hook_out,
        site_out=site_of(hook_out),
        d_out=settings.count("d_out") if is_transcoder else None,
        is_transcoder=is_transcoder,
        transform=_transform(settings),
        input_factor=factor(settings),
        model_was_centred=was_centred(origin),
        normalized_behind_gain=is_behind_gain(origin),
        decoder_norm_gate=gate and not is_poly,
        pursuit=pursuit,
        group_sizes=_group_sizes(settings, width),
        reconstructs=not is_poly or saelens_poly.is_linear(settings),
        approximation=saelens_poly.approximation(settings) if is_poly else None,
        needs_sequence=kind == TEMPORAL,
        centring_is_default=kept.flag("centring_is_default", False),
        expected=_expected(settings, kept),
        notes=tuple(kept.texts("notes")) or _notes(settings, origin),
    )


def architecture(settings: Settings) -> str:
    """As version 6 names it; of a PolySAE, the one whose encoder it has. Raises CheckpointError for one that is not
    read."""
    name = settings.text("architecture") or "standard"
    if name not in ARCHITECTURES:
        settings.refuse("architecture", f"this is not read. {READ}")
    if name == "standard" and _activation(settings) == "topk":  # how versions before 6 wrote it
        return "topk"
    return saelens_poly.BASES.get(name, name)


def subtracts_b_dec(settings: Settings) -> bool:
    """Never in a transcoder, whose b_dec lies in another space."""
    absent = architecture(settings) not in TRANSCODERS
    return settings.flag("apply_b_dec_to_input", absent)


def factor(settings: Settings) -> float | None:
    """What the weights expect inputs to be multiplied with: 1 where it is folded in already, None where it is not in
    these files."""
    value = settings.values.get("normalize_activations")
    if value is not True and value != AVERAGE:  # early versions wrote true
        return 1.0
    path = settings.path.with_name(SCALER)
    found = read_settings(path).number("scaling_factor") if path.is_file() else None
    if architecture(settings) in TRANSCODERS:
        settings.refuse("normalize_activations", "for a transcoder this is not read.")
    if found is not None and not found > 0:
        raise CheckpointError(f"{path}: scaling_factor is {found}: expected a number above 0.")
    if found is None and architecture(settings) == "matching_pursuit":
        settings.refuse("normalize_activations", f"for matching pursuit this is read with {SCALER} alone.")
    return found


def _activation(settings: Settings) -> str:
    return settings.text("activation_fn_str") or settings.text("activation_fn") or "relu"


def _selector(settings: Settings) -> tuple[Selector, int | None]:
    """(selector, k). Raises CheckpointError for what is not read."""
    kind, activation = architecture(settings), _activation(settings)
    if kind in ("topk", "abstopk"):
        kwargs = settings.section("activation_fn_kwargs")
        return SELECTORS[kind], settings.count("k") if "k" in settings.values else kwargs.count("k")
    if kind == TEMPORAL:
        return saelens_temporal.selected(settings)
    if kind == "matching_pursuit":
        bounded = settings.values.get("max_iterations") is not None
        return SELECTORS[kind], settings.count("max_iterations") if bounded else None
    if activation != "relu":
        key = "activation_fn_str" if settings.values.get("activation_fn_str") else "activation_fn"
        settings.refuse(key, f"with architecture {kind}, only relu is read.")
    return SELECTORS[kind], None


def _pursuit(settings: Settings) -> Pursuit:
    """When one of `matching_pursuit` ends; the threshold speaks of inputs that are not multiplied by `factor`."""
    if architecture(settings) != "matching_pursuit":
        return Pursuit()
    threshold = settings.number("residual_threshold")
    return Pursuit(
        residual_below=(1e-2 if threshold is None else threshold) / (factor(settings) or 1.0),
        ends_on_repeat=settings.flag("stop_on_duplicate_support", True),
    )


def _transform(settings: Settings) -> tuple[Transform, ...]:
    """`normalize_activations`, but for a factor or a whitening, which `load` folds in."""
    value = settings.values.get("normalize_activations")
    if value in (None, False, True, AVERAGE, WHITENING, RESCALE):
        return ()
    if not isinstance(value, str) or value not in TRANSFORMS:
        settings.refuse(
            "normalize_activations",
            f"this is not read; these are: {', '.join((*TRANSFORMS, AVERAGE, WHITENING))}.",
        )
    return TRANSFORMS[value]


def _refuse_what_is_not_read(settings: Settings, origin: Settings, is_transcoder: bool) -> None:
    """Settings that change what an activation is, and that would otherwise pass unseen."""
    if architecture(settings) == TEMPORAL:
        saelens_temporal.form_of(settings)
        if was_centred(origin):
            origin.refuse("model_from_pretrained_kwargs", "of temporal dictionaries centring is not read.")
    elif settings.values.get("normalize_activations") == RESCALE:
        settings.refuse("normalize_activations", f"this is read for {TEMPORAL} dictionaries only.")
    reshape, hook = settings.text("reshape_activations") or "none", hook_of(origin)
    if reshape not in ("none", "hook_z") or (reshape == "hook_z" and hook and not hook.endswith("_z")):
        settings.refuse("reshape_activations", f"this is not read at the hook point '{shortened(hook)}'.")
    head = next(
        (k for k in ("hook_head_index", "hook_point_head_index") if origin.integer(k) is not None), None
    )
    if head is not None:
        origin.refuse(head, "dictionaries of a single attention head are not read.")
    is_whitened = settings.values.get("normalize_activations") == WHITENING
    if is_whitened and (is_transcoder or saelens_poly.is_polynomial(settings)):
        settings.refuse("normalize_activations", "for a transcoder or a PolySAE this is not read.")
    if is_transcoder and settings.flag("apply_b_dec_to_input", False):
        settings.refuse(
            "apply_b_dec_to_input", "a transcoder's b_dec belongs to its output. Is the architecture right?"
        )
    out = origin.text("hook_name_out")
    if not is_transcoder and out is not None and out != hook:
        origin.refuse(
            "hook_name_out",
            f"it predicts another place than it reads, but its architecture, {architecture(settings)}, is no "
            f"transcoder. {READ}",
        )


def _group_sizes(settings: Settings, width: int) -> tuple[int, ...]:
    """From `matryoshka_widths`, which are sums: 4, 16, 64 are levels of 4, 12 and 48 features."""
    ends = settings.values.get("matryoshka_widths")
    if ends is None:
        return ()
    if not isinstance(ends, list) or not all(type(end) is int for end in cast(list[object], ends)):
        settings.refuse("matryoshka_widths", "expected a list of whole numbers.")
    known = cast(list[int], ends)
    starts_and_ends = [0, *known] if known and known[-1] == width else [0, *known, width]
    sizes = tuple(end - start for start, end in pairwise(starts_and_ends))
    if min(sizes) < 1:
        settings.refuse(
            "matryoshka_widths", f"expected numbers that rise up to the {width} features (d_sae)."
        )
    return sizes


def _expected(settings: Settings, kept: Settings) -> Expected:
    """Batch-top-k is trained to have k features a token on average, which need not be a whole number."""
    if "expected" in kept.values:
        stated = kept.section("expected")
        return Expected(l0=stated.number("l0"), fvu=stated.number("fvu"))
    return Expected(l0=settings.number("k") if architecture(settings) in BATCH_TOPK else None)


def _notes(settings: Settings, origin: Settings) -> tuple[str, ...]:
    kind, value = architecture(settings), factor(settings)
    subtracts = subtracts_b_dec(settings)
    notes = [f"b_dec is {'' if subtracts else 'not '}subtracted"]
    if kind == TEMPORAL:
        notes = [*temporal.notes(saelens_temporal.form_of(settings), subtracts_b=subtracts)]
    if kind == "matching_pursuit":
        notes.append(_course(_pursuit(settings), settings.integer("max_iterations")))
    if kind in BATCH_TOPK:
        notes.append("a training dump: the threshold tracked in training stands for the top k of a batch")
    if value not in (None, 1.0):
        notes.append(f"inputs are multiplied by {value:.6g} ({SCALER})")
    if settings.values.get("normalize_activations") == WHITENING:
        notes.append(f"inputs are whitened ({FILE})")
    of_decoder = saelens_poly.notes(settings) if saelens_poly.is_polynomial(settings) else []
    return (*of_decoder, *notes, *saelens_model.notes(origin))


def _course(pursuit: Pursuit, n_steps: int | None) -> str:
    steps = "d_in steps" if n_steps is None else f"{n_steps} steps"
    ends = [f"what is left is shorter than {pursuit.residual_below:.4g}"] * (pursuit.residual_below > 0)
    ends += ["a step adds no new feature"] * pursuit.ends_on_repeat
    return f"matching pursuit: {steps} at most" + "".join(f", or until {end}" for end in ends)
