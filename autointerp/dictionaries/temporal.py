"""Temporal SAEs (Temporal Feature Analysis): conf.yaml and latest_ckpt.safetensors, or latest_ckpt.pt.

Attention over the tokens before predicts a part of each token's vector, and the rest of it, what is novel, is
encoded sparsely:

    x' = s x - b        s: `scaling_factor`
    x' less what each of `n_attn_layers` layers of attention predicts of it (`context.py`)
    codes: of relu(x' E / (4 d_in)) the `kval_topk` largest, all, or those above a threshold tracked in training

D [F, D_in] is the decoder, E [D_in, F] the encoder, D transposed where there is none (`tied_weights`). Codes of the
prediction are dense and are not features here.

Temporal SAEs of another kind (T-SAE, arXiv 2511.05541) encode each token by itself, and only their training looks
at its neighbours: they read as the Matryoshka dictionaries that they are.

Sources: arXiv 2511.01836; eslubana/temporalSAEs at d520c8c: sae/saeTemporal.py, config/sae_train; decoderesearch/
SAELens 6.54.12: saes/temporal_sae.py, loading/pretrained_sae_loaders.py (canrager/temporalSAEs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, folder_of, listed, read_settings
from autointerp.dictionaries.origin import hub_name, named, site_of
from autointerp.dictionaries.spec import DictionarySpec, Expected, Selector, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "conf.yaml"
WEIGHTS: Final = ("latest_ckpt.safetensors", "latest_ckpt.pt")
IN_CHECKPOINT: Final = "sae."
"""What tensors are called in a file that holds the optimizer's too begins with this."""
SELECTORS: Final[dict[str, Selector]] = {"topk": "topk", "relu": "relu", "batchtopk": "jumprelu"}
THRESHOLD: Final = "expected_min_act"
"""Of batchtopk: the smallest activation that training kept, a moving mean."""
MAPS: Final = ("k_ctx", "q_target", "v_ctx", "c_proj")
EPSILON: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Form:
    """How the attention is built."""

    n_layers: int
    n_heads: int
    n_keys: int
    """Numbers of a token's key, of all heads."""
    is_tied: bool
    scale: float
    """What inputs are multiplied by."""


@dataclass(frozen=True, slots=True)
class Temporal:
    """Temporal SAEs: conf.yaml + latest_ckpt.safetensors; codes of what attention over earlier tokens leaves."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        folder = folder_of(path, CONFIG, *WEIGHTS)
        return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS)

    def describe(self, path: Path) -> DictionarySpec:
        """Reads conf.yaml and the header of the weights. Raises CheckpointError."""
        folder = folder_of(path, CONFIG, *WEIGHTS)
        settings, weights = read_settings(folder / CONFIG), _weights(folder)
        spec, headers = _configured(folder, settings), read_headers(weights)
        form = _form(settings, spec.width)
        prefix = _prefix(weights, headers)
        check_attention(weights, CONFIG, headers, form, f"{prefix}E")
        check_shapes(weights, headers, _shapes(spec, form, prefix))
        return replace(spec, identity=fingerprint([folder / CONFIG, weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        form, path = _form(read_settings(spec.path / CONFIG), spec.width), _weights(spec.path)
        prefix = _prefix(path, read_headers(path))
        found = read_tensors(path, _shapes(spec, form, prefix), device)
        tensors = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        threshold = tensors.get(THRESHOLD)
        w_enc_DF = tensors["D"].T if form.is_tied else tensors["E"]
        weights = in_model_units(tensors["D"], w_enc_DF, tensors["b"][0], tensors, form)
        if threshold is None:
            return weights
        return replace(weights, threshold_F=threshold.expand(spec.width).contiguous())


def check_attention(
    weights: Path, config: str, headers: Mapping[str, object], form: Form, encoder: str
) -> None:
    """Raises CheckpointError where `weights` holds other layers than the configuration says, before a name is made
    for each, or an encoder that nothing would read. `encoder`: what that one's name is."""
    n_layers = len({name.split(".")[-3] for name in headers if name.endswith(f".{MAPS[0]}.weight")})
    if form.n_layers != n_layers:
        raise CheckpointError(
            f"{weights} holds {n_layers} layers of attention, but {config} says that n_attn_layers is "
            f"{form.n_layers}. Is it the configuration of another training?"
        )
    if form.is_tied and encoder in headers:
        raise CheckpointError(
            f"{weights} holds an encoder, {encoder}, but {config} says that the decoder is the encoder too "
            "(tied_weights). Is it the configuration of another training?"
        )


def in_model_units(
    w_dec_FD: Tensor, w_enc_DF: Tensor, b_D: Tensor, tensors: Mapping[str, Tensor], form: Form
) -> Weights:
    """With the scale of the inputs folded in. `w_enc_DF`: as stored; `tensors`: the attention's, by their names."""
    import torch

    from autointerp.dictionaries.context import Attention, AttentionLayer

    w_enc_DF = (w_enc_DF * (form.scale / (4 * len(b_D)))).contiguous()
    w_dec_FD, b_D = w_dec_FD / form.scale, b_D / form.scale
    layers = tuple(
        AttentionLayer(*(tensors[name] for name in attention_names(number)))
        for number in range(form.n_layers)
    )
    no_bias_F = torch.zeros(len(w_dec_FD), device=b_D.device)
    predict = Attention(layers, form.n_heads, w_enc_DF, b_D, w_dec_FD, EPSILON / form.scale)
    return Weights(w_enc_DF, no_bias_F, b_D, w_dec_FD, b_D, predict=predict)


def attention_names(number: int) -> list[str]:
    """Of one layer, in the order of `AttentionLayer`'s fields."""
    return [f"attn_layers.{number}.{name}.{kind}" for name in MAPS for kind in ("weight", "bias")]


def attention_shapes(width: int, form: Form) -> dict[str, tuple[tuple[str, int], ...]]:
    """Of all layers."""
    features, keys = ("features", width), ("width / bottleneck_factor", form.n_keys)
    axes = [(keys, features), (keys,), (keys, features), (keys,), *[(features, features), (features,)] * 2]
    return {
        name: shape
        for number in range(form.n_layers)
        for name, shape in zip(attention_names(number), axes, strict=True)
    }


def attention_form(settings: Settings, width: int, scale: float | None) -> Form:
    """From the settings that conf.yaml and SAELens call alike. Raises CheckpointError."""
    n_heads, bottleneck = settings.count("n_heads"), settings.count("bottleneck_factor")
    if width % (n_heads * bottleneck):
        settings.refuse("n_heads", f"the {width} features can't be shared out by it and bottleneck_factor.")
    scale = 1.0 if scale is None else scale
    if not 1e-9 < scale < 1e9:
        raise CheckpointError(
            f"{settings.path}: inputs are multiplied by {scale}; a number above 0 is expected that leaves them in "
            "float32."
        )
    is_tied = settings.flag("tied_weights", True)
    return Form(settings.count("n_attn_layers"), n_heads, width // bottleneck, is_tied, scale)


def selected(settings: Settings, width: int) -> tuple[Selector, int | None]:
    """(selector, k), from the same. Raises CheckpointError for a kind that is not read."""
    kind = settings.text("sae_diff_type") or "topk"
    if kind not in SELECTORS:
        settings.refuse("sae_diff_type", f"this is not read; these are: {listed(list(SELECTORS))}.")
    if kind != "topk":
        return SELECTORS[kind], None
    k = settings.count("kval_topk")
    if k > width:
        settings.refuse("kval_topk", f"it has {width} features.")
    return "topk", k


def notes(form: Form, *, subtracts_b: bool = True) -> tuple[str, ...]:
    layers = "1 layer" if form.n_layers == 1 else f"{form.n_layers} layers"
    return (
        f"codes are of what {layers} of attention over the tokens before leave of a vector: rows are never packed, "
        "and position 0 is read, though nobody looks at it",
        f"inputs are multiplied by {form.scale:.6g}, and b is {'' if subtracts_b else 'not '}subtracted",
    )


def _configured(folder: Path, settings: Settings) -> DictionarySpec:
    """The identity is left empty."""
    llm, sae, data = settings.section("llm"), settings.section("sae"), settings.section("data")
    d_in, factor = llm.count("dimin"), sae.number("exp_factor")
    if factor is None or not 1 <= d_in * factor < 2**31:
        sae.refuse(
            "exp_factor", f"expected how many times as many features as the {d_in} numbers of a vector."
        )
    width = int(d_in * factor)
    selector, k = selected(sae, width)
    layer = named(folder, r"(?:^|_)layer_(\d{1,4})(?:_|$)")
    hook = None if layer is None else f"blocks.{int(layer[1])}.hook_resid_post"
    return DictionarySpec(
        format="temporal",
        path=folder,
        identity="",
        d_in=d_in,
        width=width,
        selector=selector,
        k=k,
        hook=hook,
        site=site_of(hook),
        model=hub_name(llm.text("model_hf_name")),
        corpus=data.text("hf_name"),
        context_length=data.integer("context_length"),
        prepend_bos=True,
        needs_sequence=True,
        expected=Expected(l0=sae.number("kval_topk") if selector == "jumprelu" else None),
        notes=notes(_form(settings, width)),
    )


def _form(settings: Settings, width: int) -> Form:
    sae = settings.section("sae")
    return attention_form(sae, width, sae.number("scaling_factor"))


def _weights(folder: Path) -> Path:
    """Safetensors where both are there."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder} has no {' and no '.join(WEIGHTS)}.")
    return found[0]


def _prefix(path: Path, headers: Mapping[str, object]) -> str:
    """Raises CheckpointError where there is no decoder."""
    prefix = IN_CHECKPOINT if f"{IN_CHECKPOINT}D" in headers else ""
    if f"{prefix}D" not in headers:
        raise CheckpointError(f"{path} has no tensor 'D', the decoder. It has: {listed(headers)}.")
    return prefix


def _shapes(spec: DictionarySpec, form: Form, prefix: str) -> Shapes:
    d_in, features = ("d_in", spec.d_in), ("features", spec.width)
    shapes: dict[str, tuple[tuple[str, int], ...]] = {"b": (("one", 1), d_in), "D": (features, d_in)}
    if not form.is_tied:
        shapes["E"] = (d_in, features)
    if spec.selector == "jumprelu":
        shapes[THRESHOLD] = (("one", 1),)
    shapes |= attention_shapes(spec.width, form)
    return {prefix + name: axes for name, axes in shapes.items()}
