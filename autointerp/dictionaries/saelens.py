"""SAELens checkpoints: a folder with cfg.json and sae_weights.safetensors.

Source: decoderesearch/SAELens at 91ca16c (6.x): sae_lens/saes/sae.py, standard_sae.py, jumprelu_sae.py,
topk_sae.py, and loading/pretrained_sae_loaders.py for files from before version 6.

    version 6          nested: `metadata.hook_name`, `metadata.model_name`, ..., `k`
    before version 6   flat: `hook_name` or `hook_point`, ...; a TopK dictionary calls itself
                       `architecture: standard` with `activation_fn_str: topk`

Defaults where a key is absent are SAELens' own: `apply_b_dec_to_input` and `prepend_bos` are true.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, folder_of, read_settings, require_files
from autointerp.dictionaries.origin import hub_name, site_of
from autointerp.dictionaries.spec import DictionarySpec, Selector, Transform, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

SELECTORS: Final[dict[str, Selector]] = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}

TRANSFORMS: Final[dict[str, tuple[Transform, ...]]] = {
    "none": (),
    "layer_norm": ("layer_norm",),
    "constant_norm_rescale": ("constant_norm",),
}

READ = f"Of SAELens' architectures these are read: {', '.join(SELECTORS)}."

EXPORT = "Export it with SAELens' save_inference_model"
WAYS_OUT: Final = {
    "batchtopk": f"{EXPORT}, which makes it a jumprelu dictionary.",
    "matryoshka_batchtopk": f"{EXPORT}, which makes it a jumprelu dictionary.",
}

FOREIGN_TENSORS: Final = {
    "log_threshold": f"it is a training dump. {EXPORT}, which stores thresholds.",
    "topk_threshold": f"it is a training dump. {EXPORT}, which stores thresholds.",
    "b_gate": "it is a gated dictionary.",
    "r_mag": "it is a gated dictionary.",
    "W_skip": "it is a transcoder.",
}
"""Tensors that say that a dictionary isn't what its configuration calls it."""

SCALING_TENSORS: Final = ("scaling_factor", "finetuning_scaling_factor")
"""Ones in most old files; other values come from fine-tuning against shrinkage and are not read."""


@dataclass(frozen=True, slots=True)
class Saelens:
    """SAELens: cfg.json + sae_weights.safetensors, of any version; standard, jumprelu and topk."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        folder = folder_of(path, CONFIG, WEIGHTS)
        if (folder / WEIGHTS).is_file():
            return (folder / CONFIG).is_file() or not (folder / "config.json").is_file()
        try:
            return "d_sae" in read_settings(folder / CONFIG).values
        except CheckpointError:
            return False

    def describe(self, path: Path) -> DictionarySpec:
        """Reads cfg.json and the header of the weights. Raises CheckpointError."""
        folder = folder_of(path, CONFIG, WEIGHTS)
        require_files(folder, CONFIG, WEIGHTS)
        spec = _configured(folder)
        weights = folder / WEIGHTS
        headers = read_headers(weights)
        for name, what in FOREIGN_TENSORS.items():
            if name in headers:
                raise CheckpointError(f"{weights} holds '{name}': {what} {READ}")
        check_shapes(weights, headers, _shapes(spec))
        return replace(spec, identity=fingerprint([folder / CONFIG, weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        import torch

        weights = spec.path / WEIGHTS
        shapes = dict(_shapes(spec))
        present = read_headers(weights)
        shapes |= {name: (("d_sae", spec.width),) for name in SCALING_TENSORS if name in present}
        tensors = read_tensors(weights, shapes, device)
        for name in SCALING_TENSORS:
            if name in tensors and not torch.allclose(tensors[name], torch.ones_like(tensors[name])):
                raise CheckpointError(
                    f"{weights}: '{name}' is not all ones: the dictionary was fine-tuned to rescale its "
                    "features, which is not read. Use the dictionary from before that fine-tuning."
                )
        subtracts = read_settings(spec.path / CONFIG).flag("apply_b_dec_to_input", True)
        b_dec_D = tensors["b_dec"]
        return Weights(
            w_enc_DF=tensors["W_enc"],
            b_enc_F=tensors["b_enc"],
            b_pre_D=b_dec_D if subtracts else torch.zeros_like(b_dec_D),
            w_dec_FO=tensors["W_dec"],
            b_dec_O=b_dec_D,
            threshold_F=tensors.get("threshold"),
        )


def _shapes(spec: DictionarySpec) -> Shapes:
    d_in, d_sae = ("d_in", spec.d_in), ("d_sae", spec.width)
    shapes = {"b_dec": (d_in,), "b_enc": (d_sae,), "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in)}
    return shapes | ({"threshold": (d_sae,)} if spec.selector == "jumprelu" else {})


def _configured(folder: Path) -> DictionarySpec:
    """What cfg.json alone says; the identity is left empty."""
    settings = read_settings(folder / CONFIG)
    # One look-up for both layouts: what version 6 nests lies flat before it.
    origin = Settings(settings.path, settings.values | settings.section("metadata").values)
    selector, k = _selector(settings)
    _refuse_what_is_not_read(settings, origin)
    hook = _hook(origin)
    width = settings.count("d_sae")
    if k is not None and k > width:
        raise CheckpointError(f"{settings.path}: k is {k}, more than the {width} features (d_sae).")
    gate = settings.flag("rescale_acts_by_decoder_norm", False)
    if gate and selector != "topk":
        settings.refuse("rescale_acts_by_decoder_norm", "this is read for topk dictionaries only.")
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
        transform=_transform(settings),
        decoder_norm_gate=gate,
    )


def _selector(settings: Settings) -> tuple[Selector, int | None]:
    """(selector, k). Raises CheckpointError for an architecture that is not read."""
    architecture = settings.text("architecture") or "standard"
    activation = settings.text("activation_fn_str") or settings.text("activation_fn") or "relu"
    if architecture not in SELECTORS:
        settings.refuse("architecture", f"{WAYS_OUT.get(architecture, 'this is not read.')} {READ}")
    if architecture == "topk":
        kwargs = settings.section("activation_fn_kwargs")
        return "topk", settings.count("k") if "k" in settings.values else kwargs.count("k")
    if activation == "topk" and architecture == "standard":  # how versions before 6 wrote it
        return "topk", settings.section("activation_fn_kwargs").count("k")
    if activation != "relu":
        key = "activation_fn_str" if settings.values.get("activation_fn_str") else "activation_fn"
        settings.refuse(key, f"with architecture {architecture}, only relu is read.")
    return SELECTORS[architecture], None


def _transform(settings: Settings) -> tuple[Transform, ...]:
    """`normalize_activations`; early versions wrote true for expected_average_only_in."""
    value = settings.values.get("normalize_activations")
    if value is None or value is False:
        return ()
    if value is True or value == "expected_average_only_in":
        settings.refuse(
            "normalize_activations",
            "the weights expect inputs times a factor that is not in these files. Fold it in with SAELens "
            "(sae.fold_activation_norm_scaling_factor(factor), sae.save_model(folder)) and use that folder.",
        )
    if not isinstance(value, str) or value not in TRANSFORMS:
        settings.refuse("normalize_activations", f"this is not read; these are: {', '.join(TRANSFORMS)}.")
    return TRANSFORMS[value]


def _refuse_what_is_not_read(settings: Settings, origin: Settings) -> None:
    """Settings that change what an activation is, and that would otherwise pass unseen."""
    reshape = settings.text("reshape_activations") or "none"
    if reshape != "none" or "hook_z" in (_hook(origin) or ""):
        raise CheckpointError(
            f"{settings.path}: this dictionary reads the attention heads' outputs (hook_z), which is not "
            "read. The places that are read: residual stream, MLP and attention outputs, MLP neurons."
        )
    if origin.integer("hook_head_index") is not None:
        origin.refuse("hook_head_index", "dictionaries of a single attention head are not read.")
    out = origin.text("hook_name_out")
    if out is not None and out != _hook(origin):
        origin.refuse("hook_name_out", f"it is a transcoder. {READ}")
    if origin.section("model_from_pretrained_kwargs").flag("center_writing_weights", False):
        origin.refuse(
            "model_from_pretrained_kwargs",
            "the dictionary was trained on a model whose residual stream TransformerLens had centred, "
            "which is not read. On a model with RMSNorm TransformerLens leaves the stream as it is: there, "
            "take center_writing_weights out of the file.",
        )


def _hook(origin: Settings) -> str | None:
    """The hook's name; the earliest files have `blocks.{layer}.hook_resid_pre` and the layer beside it."""
    hook = origin.text("hook_name") or origin.text("hook_point")
    if hook and "{layer}" in hook:
        layer = origin.integer("hook_layer", origin.integer("hook_point_layer"))
        return None if layer is None else hook.replace("{layer}", str(layer))
    return hook
