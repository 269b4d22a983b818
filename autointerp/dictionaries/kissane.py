"""Connor Kissane's dictionaries: NAME.pt with NAME_cfg.json, and crosscoders, cc_weights.pt with cfg.json.

    autoencoder   relu((x - b_dec) W_enc + b_enc), mostly on attention's z with the heads one behind the other
    crosscoder    relu(sum over two models of x_m W_enc[m] + b_enc); W_enc [2, D, F], W_dec [F, 2, D], b_dec [2, D];
                  nothing is subtracted; training scaled each model's vectors to a mean norm of sqrt(D)

Codes of one model's half are not the crosscoder's, so that it reads vectors of 2 D numbers, both models' one behind
the other, which only files can give.

Sources: arXiv 2406.17759; ckkissane/attention-output-saes: train.py, common/torch_modules/autoencoder.py;
ckkissane/crosscoder-gemma-2-2b-model-diff and tbng/crosscoder-model-diff-replication: crosscoder.py, buffer.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, read_settings
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import hub_name, site_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

CROSSCODER, CROSSCODER_CONFIG = "cc_weights.pt", "cfg.json"
LAYOUT: Final = Layout("W_enc", "W_dec", "b_enc", "b_dec")
FOLDED: Final = (
    "z is taken without what biases add to it: TransformerLens, with which this was trained, moves those of the "
    "values, and what LayerNorm's bias makes of them, from z into b_O. Stored activations are taken as they are"
)


@dataclass(frozen=True, slots=True)
class Kissane:
    """Kissane: NAME.pt + NAME_cfg.json, attention SAEs; crosscoders of two models, cc_weights.pt + cfg.json; relu."""

    version: ClassVar[str] = "2"

    def recognises(self, path: Path) -> bool:
        weights = _weights(path)
        try:
            values = read_settings(_config(weights)).values
        except CheckpointError:
            return False
        has_weights = weights.suffix == ".pt" and weights.is_file()
        return has_weights and "dict_size" in values and bool({"act_size", "d_in"} & values.keys())

    def describe(self, path: Path) -> DictionarySpec:
        """Reads the configuration and the header of the weights. Raises CheckpointError."""
        weights = _weights(path)
        settings, headers = read_settings(_config(weights)), read_headers(weights)
        is_crosscoder = LAYOUT.w_enc in headers and len(headers[LAYOUT.w_enc].shape) == 3
        spec = _crosscoder(weights, settings) if is_crosscoder else _autoencoder(weights, settings)
        check_shapes(weights, headers, _shapes(spec))
        return replace(spec, identity=fingerprint([_config(weights), weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        import torch

        tensors = read_tensors(spec.path, _shapes(spec), device)
        if spec.n_models == 1:
            weights = LAYOUT.weights(tensors)
            return replace(weights, b_pre_D=weights.b_dec_O)
        return Weights(
            w_enc_DF=tensors["W_enc"].flatten(0, 1),
            b_enc_F=tensors["b_enc"],
            b_pre_D=torch.zeros(spec.d_in, device=device),
            w_dec_FO=tensors["W_dec"].flatten(1, 2),
            b_dec_O=tensors["b_dec"].flatten(),
        )


def _weights(path: Path) -> Path:
    """The file of tensors; a folder means the crosscoder in it."""
    return path / CROSSCODER if path.is_dir() else path


def _config(weights: Path) -> Path:
    of_crosscoder = weights.name == CROSSCODER
    return weights.with_name(CROSSCODER_CONFIG if of_crosscoder else f"{weights.stem}_cfg.json")


def _shapes(spec: DictionarySpec) -> Shapes:
    if spec.n_models == 1:
        return LAYOUT.shapes(spec)
    models, d_in = ("models", spec.n_models), ("d_in", spec.d_in // spec.n_models)
    features = ("dict_size", spec.width)
    return {
        "b_enc": (features,),
        "b_dec": (models, d_in),
        "W_enc": (models, d_in, features),
        "W_dec": (features, models, d_in),
    }


def _autoencoder(weights: Path, settings: Settings) -> DictionarySpec:
    hook = settings.text("act_name")
    site = site_of(hook)
    head = settings.values.get("head")
    if head is not None and head != "cat":
        settings.refuse("head", "dictionaries of a single attention head are not read.")
    at_z = site is not None and site.point == "z"
    return replace(
        _base(weights, settings),
        d_in=settings.count("act_size"),
        hook=hook,
        site=site,
        model=hub_name(settings.text("model_name")),
        model_was_centred=settings.flag("center_writing_weights", True),
        centring_is_default="center_writing_weights" not in settings.values,
        without_value_bias=at_z,
        notes=("b_dec is subtracted", *(["the heads stand one behind the other", FOLDED] if at_z else [])),
    )


def _crosscoder(weights: Path, settings: Settings) -> DictionarySpec:
    hook = settings.text("hook_point")
    return replace(
        _base(weights, settings),
        d_in=2 * settings.count("d_in"),
        hook=hook,
        site=site_of(hook),
        n_models=2,
        notes=(
            "a crosscoder of two models, read from stored activations alone: of each token the vectors of both, one "
            "behind the other",
            "b_dec is not subtracted",
            "training scaled the vectors of each model to a mean norm of sqrt(d_in); the factors are not in the "
            "checkpoint: scale what you store, and see autointerp sae check",
        ),
    )


def _base(weights: Path, settings: Settings) -> DictionarySpec:
    """What is not known from here on is left empty."""
    return DictionarySpec(
        format="kissane",
        path=weights,
        identity="",
        d_in=0,
        width=settings.count("dict_size"),
        selector="relu",
        k=None,
        hook=None,
        site=None,
        model=None,
        corpus=None,
        context_length=settings.integer("seq_len"),
        prepend_bos=True,
    )
