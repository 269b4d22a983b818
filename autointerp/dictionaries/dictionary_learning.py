"""dictionary_learning checkpoints: ae.pt with config.json beside it, or one folder up (checkpoints/ae_N.pt).

Source: saprmarks/dictionary_learning at 60ec6bf: dictionary_learning/dictionary.py, trainers/*.py, training.py.

    AutoEncoder         relu(encoder(x - bias)), rescaled so that decoder directions have length 1, which is
                        what its loader does by default; p-anneal trains this class too
    AutoEncoderNew      relu(encoder(x)): no bias is subtracted
    GatedAutoEncoder    both maps of x - decoder_bias
    AutoEncoderTopK     the k largest of relu(encoder(x - b_dec)); the threshold that it stores is not used
    BatchTopKSAE, MatryoshkaBatchTopKSAE   above one threshold; -1, never set, leaves relu
    JumpReluAutoEncoder above a threshold a feature; no bias is subtracted

A finished ae.pt has its biases in the units of the model. One written in mid-run ({step, ae, optimizer,
config, norm_factor}) expects inputs divided by norm_factor; its biases and thresholds are multiplied here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, cast

from autointerp.dictionaries.checkpoint import Settings, read_settings, require_files
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.spec import DictionarySpec, Expected, Gate, Selector, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.dictionaries.torch_files import load, read_contents
from autointerp.errors import CheckpointError, SiteError
from autointerp.identity import fingerprint
from autointerp.subject.sites import parse_hook
from autointerp.types import Site

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "config.json"
WEIGHTS: Final = "ae.pt"
WEIGHTS_NAME = re.compile(r"ae(_\d+)?\.pt")
MID_RUN: Final = "ae."
"""What the dictionary's tensors are called in a mid-run file begins with this."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a class of the library lays out its tensors; the names are of what may be called otherwise."""

    selector: Selector
    linear: bool
    """`encoder.weight` [F, D] and `decoder.weight` [D, F], not `W_enc` [D, F] and `W_dec` [F, D]."""
    b_enc: str
    b_dec: str
    subtracts: bool
    threshold: str = ""
    """`one` for all features, or one `each`; empty where there is none."""


KINDS: Final = {
    "AutoEncoder": Kind("relu", True, "encoder.bias", "bias", subtracts=True),
    "AutoEncoderNew": Kind("relu", True, "encoder.bias", "decoder.bias", subtracts=False),
    "GatedAutoEncoder": Kind("gated", True, "gate_bias", "decoder_bias", subtracts=True),
    "AutoEncoderTopK": Kind("topk", True, "encoder.bias", "b_dec", subtracts=True),
    "BatchTopKSAE": Kind("jumprelu", True, "encoder.bias", "b_dec", subtracts=True, threshold="one"),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", False, "b_enc", "b_dec", subtracts=True, threshold="one"),
    "JumpReluAutoEncoder": Kind("jumprelu", False, "b_enc", "b_dec", subtracts=False, threshold="each"),
}

NAMED_SITE = re.compile(r"(resid_pre|resid_mid|resid_post|mlp_out|attn_out)_layer_(\d+)")
"""How the library's own scripts call a submodule: the point, and the layer."""
POINT_HOOKS: Final = "blocks.{layer}.hook_{point}"


@dataclass(frozen=True, slots=True)
class DictionaryLearning:
    """dictionary_learning: ae.pt + config.json; every class that its trainers make."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        weights = _weights(path)
        try:
            trainer = _settings(weights).section("trainer") if weights.suffix == ".pt" else None
        except CheckpointError:
            return False
        return trainer is not None and "dict_class" in trainer.values

    def describe(self, path: Path) -> DictionarySpec:
        """Reads config.json and the names and shapes in ae.pt. Raises CheckpointError."""
        if path.is_dir():
            require_files(path, WEIGHTS)
        weights = _weights(path)
        settings = _settings(weights)
        spec = _configured(weights, settings)
        headers = read_headers(weights)
        check_shapes(weights, headers, _shapes(spec, headers))
        factor = _norm_factor(weights)
        notes = spec.notes if factor == 1.0 else (*spec.notes, f"mid-run: inputs divided by {factor:.6g}")
        return replace(spec, notes=notes, identity=fingerprint([settings.path, weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        import torch

        weights, settings = spec.path, _settings(spec.path)
        name, kind = _kind(settings)
        headers = read_headers(weights)
        found = read_tensors(weights, _shapes(spec, headers), device)
        tensors = {key.removeprefix(MID_RUN): tensor for key, tensor in found.items()}
        if spec.selector == "topk":
            _check_k(spec, headers, device)
        factor = _norm_factor(weights)
        b_dec_D = tensors[kind.b_dec] * factor
        b_enc_F = tensors[kind.b_enc] * factor
        w_enc_DF = tensors["encoder.weight"].T if kind.linear else tensors["W_enc"]
        w_dec_FD = tensors["decoder.weight"].T if kind.linear else tensors["W_dec"]
        if name == "AutoEncoder":
            norm_F = w_dec_FD.norm(dim=1)
            norm_F = torch.where(norm_F > 0, norm_F, 1.0)  # a feature without a direction stays as it is
            w_enc_DF, b_enc_F, w_dec_FD = w_enc_DF * norm_F, b_enc_F * norm_F, w_dec_FD / norm_F[:, None]
        gate = None
        if spec.selector == "gated":
            gate = Gate(b_enc_F, tensors["r_mag"].exp(), tensors["mag_bias"] * factor)
        return Weights(
            w_enc_DF=w_enc_DF,
            b_enc_F=b_enc_F,
            b_pre_D=b_dec_D if kind.subtracts else torch.zeros_like(b_dec_D),
            w_dec_FO=w_dec_FD,
            b_dec_O=b_dec_D,
            threshold_F=_threshold(tensors, kind, spec.width, factor),
            gate=gate,
        )


def _weights(path: Path) -> Path:
    """The file of tensors that `path`, a folder or a file, names; it need not be there."""
    return path if WEIGHTS_NAME.fullmatch(path.name) and not path.is_dir() else path / WEIGHTS


def _settings(weights: Path) -> Settings:
    """config.json beside the file or, for one of `checkpoints/`, above. Raises CheckpointError."""
    beside = weights.with_name(CONFIG)
    above = weights.parent.parent / CONFIG
    return read_settings(above if weights.parent.name == "checkpoints" and not beside.exists() else beside)


def _kind(settings: Settings) -> tuple[str, Kind]:
    trainer = settings.section("trainer")
    name = trainer.text("dict_class") or ""
    if name not in KINDS:
        trainer.refuse("dict_class", f"this is not read; these are: {', '.join(KINDS)}.")
    return name, KINDS[name]


def _configured(weights: Path, settings: Settings) -> DictionarySpec:
    """What config.json says; the identity is left empty."""
    trainer, buffer = settings.section("trainer"), settings.section("buffer")
    name, kind = _kind(settings)
    io = buffer.text("io") or "out"
    if io not in ("in", "out"):
        buffer.refuse("io", "a dictionary that reads one place and predicts another is not read.")
    width, k = trainer.count("dict_size"), None
    if kind.selector == "topk":
        k = trainer.count("k")
        if k > width:
            trainer.refuse("k", f"more than the {width} features (dict_size).")
    hook = _hook(trainer, io)
    notes = [f"{kind.b_dec} is {'' if kind.subtracts else 'not '}subtracted"]
    if name == "AutoEncoder":
        notes.append("features are rescaled to decoder directions of length 1")
    if hook is None:
        notes.append(f"layer {trainer.integer('layer')} is named, but not what was read there")
    return DictionarySpec(
        format="dictionary_learning",
        path=weights,
        identity="",
        d_in=trainer.count("activation_dim"),
        width=width,
        selector=kind.selector,
        k=k,
        hook=hook,
        site=_site(hook),
        model=trainer.text("lm_name"),
        corpus=None,
        context_length=buffer.integer("ctx_len"),
        prepend_bos=True,
        group_sizes=_group_sizes(trainer, width) if name.startswith("Matryoshka") else (),
        expected=Expected(l0=trainer.number("k") if kind.threshold == "one" else None),
        notes=tuple(notes),
    )


def _hook(trainer: Settings, io: str) -> str | None:
    """`resid_post_layer_8` in the scripts of the library, else a module's path; `layer` alone may be the layer,
    its MLP or its attention."""
    name = trainer.text("submodule_name")
    if name is None:
        return None
    named = NAMED_SITE.fullmatch(name)
    if named and io == "out":
        return POINT_HOOKS.format(point=named[1], layer=named[2])
    return f"{name}.{'input' if io == 'in' else 'output'}"


def _site(hook: str | None) -> Site | None:
    """None where nobody says, or in words that are not a hook point's."""
    try:
        return parse_hook(hook) if hook else None
    except SiteError:
        return None


def _group_sizes(trainer: Settings, width: int) -> tuple[int, ...]:
    sizes = trainer.values.get("group_sizes")
    if sizes is None:
        return ()
    if not isinstance(sizes, list) or not all(type(n) is int and n > 0 for n in cast(list[object], sizes)):
        trainer.refuse("group_sizes", "expected a list of numbers above 0.")
    known = tuple(cast(list[int], sizes))
    if sum(known) != width:
        trainer.refuse("group_sizes", f"expected numbers that sum to the {width} features (dict_size).")
    return known


def _shapes(spec: DictionarySpec, headers: Mapping[str, TensorHeader]) -> Shapes:
    _, kind = _kind(_settings(spec.path))
    d_in, width = ("activation_dim", spec.d_in), ("dict_size", spec.width)
    shapes: dict[str, tuple[tuple[str, int], ...]] = {kind.b_dec: (d_in,), kind.b_enc: (width,)}
    if spec.selector == "gated":
        shapes |= {"mag_bias": (width,), "r_mag": (width,)}
    if kind.threshold:
        shapes["threshold"] = (width,) if kind.threshold == "each" else ()
    if kind.linear:
        shapes |= {"encoder.weight": (width, d_in), "decoder.weight": (d_in, width)}
    else:
        shapes |= {"W_enc": (d_in, width), "W_dec": (width, d_in)}
    prefix = MID_RUN if any(name.startswith(MID_RUN) for name in headers) else ""
    return {prefix + name: axes for name, axes in shapes.items()}


def _norm_factor(weights: Path) -> float:
    """What the inputs of a mid-run dictionary are divided by; 1 where biases are scaled already."""
    contents = read_contents(weights)
    if not any(name.startswith(MID_RUN) for name in contents.tensors):
        return 1.0
    factor = Settings(weights, dict(contents.values)).number("norm_factor")
    if factor is None:
        return 1.0
    if not factor > 0:
        raise CheckpointError(f"{weights}: norm_factor is {factor}: expected a number above 0.")
    return factor


def _threshold(tensors: Mapping[str, Tensor], kind: Kind, width: int, factor: float) -> Tensor | None:
    """[F]. A single one below 0 was never set, and is not in units of anything."""
    if not kind.threshold:
        return None
    threshold = tensors["threshold"]
    if kind.threshold == "each" or threshold >= 0:
        threshold = threshold * factor
    return threshold.expand(width).contiguous()


def _check_k(spec: DictionarySpec, headers: Mapping[str, TensorHeader], device: str) -> None:
    """Raises CheckpointError where the file holds another k than config.json: in mid-run it is annealed."""
    name = next((name for name in ("k", f"{MID_RUN}k") if name in headers), None)
    if name is None or headers[name].shape:
        return
    stored = int(load(spec.path, [name], device)[name])
    if stored != spec.k:
        raise CheckpointError(
            f"{spec.path}: '{name}' is {stored}, but {CONFIG} says that k is {spec.k}. A dictionary saved while "
            "k was still annealed is not read: take the finished one."
        )
