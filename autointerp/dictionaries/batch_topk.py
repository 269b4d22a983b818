"""Bart Bussmann's trainers (BatchTopK, matryoshka_sae): a folder with sae.pt and config.json.

    topk                 relu((x - b_dec) W_enc), of each token the top_k largest; b_enc is not used
    batchtopk, batch-topk, global-matryoshka-topk
                         the same above one `threshold`, a running estimate that only matryoshka_sae stores;
                         else a run calibrates it (`calibrate.py`)
    vanilla              relu((x - b_dec) W_enc + b_enc)
    jumprelu             x W_enc + b_enc above exp(log_threshold); b_dec is not subtracted

`input_unit_norm`: each token is centred and divided by its standard deviation + 1e-5 first. config.json holds
what JSON can't as Python would print it.

Sources: bartbussmann/BatchTopK and bartbussmann/matryoshka_sae: sae.py, config.py, logs.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, cast

from autointerp.dictionaries.checkpoint import Settings, folder_of, read_settings, require_files
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import hub_name, site_of
from autointerp.dictionaries.spec import DictionarySpec, Expected, Selector, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

CONFIG, WEIGHTS = "config.json", "sae.pt"
LAYOUT: Final = Layout("W_enc", "W_dec", "b_enc", "b_dec")
SELECTORS: Final[dict[str, Selector]] = {
    "vanilla": "relu",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "batch-topk": "jumprelu",
    "global-matryoshka-topk": "jumprelu",
    "jumprelu": "jumprelu",
}
OF_A_BATCH: Final = ("batchtopk", "batch-topk", "global-matryoshka-topk")
"""They take the top_k * B largest of a batch of B tokens, so that top_k is the mean L0 in training (sae.py)."""
DEFAULT_BATCH: Final = 4_096
"""Tokens of a training batch where config.json doesn't say (config.py)."""
THRESHOLD, LOG_THRESHOLD = "threshold", "jumprelu.log_threshold"
UNCALIBRATED: Final = (
    "In training the largest activations of a whole batch were chosen, and what a token alone must reach was "
    "never estimated. Take 'threshold' out of the state that sae.pt holds: a run then calibrates it on its own "
    "tokens."
)


@dataclass(frozen=True, slots=True)
class BatchTopk:
    """BatchTopK and Matryoshka (bartbussmann): sae.pt + config.json; topk, relu, jumprelu, batchtopk."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        try:
            values = read_settings(folder_of(path, CONFIG, WEIGHTS) / CONFIG).values
        except CheckpointError:
            return False
        return {"act_size", "dict_size"} <= values.keys()

    def describe(self, path: Path) -> DictionarySpec:
        """Reads config.json and headers. Raises CheckpointError."""
        folder = folder_of(path, CONFIG, WEIGHTS)
        require_files(folder, CONFIG, WEIGHTS)
        settings, weights = read_settings(folder / CONFIG), folder / WEIGHTS
        spec, headers = _configured(folder, settings), read_headers(weights)
        if spec.selector == "jumprelu" and not _thresholds(settings) & headers.keys():
            spec = _calibrated(spec, settings, weights)
        check_shapes(weights, headers, _shapes(spec, settings))
        return replace(spec, identity=fingerprint([folder / CONFIG, weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        path, settings = spec.path / WEIGHTS, read_settings(spec.path / CONFIG)
        tensors = read_tensors(path, _shapes(spec, settings), device)
        weights = LAYOUT.weights(tensors)
        kind = _kind(settings)
        if kind != "jumprelu":
            weights = replace(weights, b_pre_D=weights.b_dec_O)
        if kind not in ("jumprelu", "vanilla"):
            weights = replace(weights, b_enc_F=weights.b_enc_F * 0)
        if LOG_THRESHOLD in tensors:
            return replace(weights, threshold_F=tensors[LOG_THRESHOLD].exp())
        if THRESHOLD not in tensors:
            return weights
        if not tensors[THRESHOLD]:
            raise CheckpointError(
                f"{path}: its threshold is 0, as where training never set it. {UNCALIBRATED}"
            )
        return replace(weights, threshold_F=tensors[THRESHOLD].expand(spec.width))


def _kind(settings: Settings) -> str:
    kind = settings.text("sae_type") or ""
    if kind not in SELECTORS:
        settings.refuse("sae_type", f"of these trainers' dictionaries are read: {', '.join(SELECTORS)}.")
    return kind


def _thresholds(settings: Settings) -> set[str]:
    return {LOG_THRESHOLD if _kind(settings) == "jumprelu" else THRESHOLD}


def _shapes(spec: DictionarySpec, settings: Settings) -> Shapes:
    shapes = dict(LAYOUT.shapes(spec))
    if spec.selector == "jumprelu" and spec.calibration is None:
        shapes |= {
            name: (("features", spec.width),) * (name == LOG_THRESHOLD) for name in _thresholds(settings)
        }
    return shapes


def _calibrated(spec: DictionarySpec, settings: Settings, weights: Path) -> DictionarySpec:
    """Of a dictionary that stores no threshold. Raises CheckpointError for one that must."""
    if _kind(settings) == "jumprelu":
        raise CheckpointError(f"{weights} stores no threshold: it has no '{LOG_THRESHOLD}'.")
    k = _top_k(settings, spec.width)
    batch = DEFAULT_BATCH if settings.values.get("batch_size") is None else settings.count("batch_size")
    calibration = Calibration("batch_topk", k, batch)
    return replace(spec, calibration=calibration)


def _top_k(settings: Settings, width: int) -> int:
    k = settings.count("top_k")
    if k > width:
        settings.refuse("top_k", f"more than the {width} features.")
    return k


def _configured(folder: Path, settings: Settings) -> DictionarySpec:
    """What config.json says; the identity is left empty."""
    kind, width = _kind(settings), settings.count("dict_size")
    selector = SELECTORS[kind]
    k = _top_k(settings, width) if selector == "topk" else None
    hook = settings.text("hook_point")
    return DictionarySpec(
        format="batch_topk",
        path=folder,
        identity="",
        d_in=settings.count("act_size"),
        width=width,
        selector=selector,
        k=k,
        hook=hook,
        site=site_of(hook),
        model=hub_name(settings.text("model_name")),
        corpus=settings.text("dataset_path"),
        context_length=settings.integer("seq_len"),
        prepend_bos=True,
        transform=("layer_norm",) if settings.flag("input_unit_norm", False) else (),
        group_sizes=_group_sizes(settings, width),
        expected=Expected(l0=settings.number("top_k") if kind in OF_A_BATCH else None),
        notes=("b_dec is not subtracted" if kind == "jumprelu" else "b_dec is subtracted",),
    )


def _group_sizes(settings: Settings, width: int) -> tuple[int, ...]:
    """Of a Matryoshka dictionary; written as a list, or as the text of one."""
    value = settings.values.get("group_sizes")
    if value is None or _kind(settings) != "global-matryoshka-topk":
        return ()
    try:
        found: object = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    sizes = cast(list[object], found if isinstance(found, list) else [])
    if not all(type(size) is int and size > 0 for size in sizes) or sum(cast(list[int], sizes)) != width:
        settings.refuse("group_sizes", f"expected numbers of features that make {width} together.")
    return tuple(cast(list[int], sizes))
