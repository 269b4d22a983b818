"""Top-AFA dictionaries: a folder with sae.pt and config.json, as BatchTopK's trainers write it, sae_type `topafa`.

    z = relu((x - b_dec) W_enc); of each token the largest z |W_dec row|, as many as bring the root of the sum of
    their squares nearest to |x - b_dec|; b_enc is not used

so that no k has to be chosen. `input_unit_norm`: each token is centred and divided by its standard deviation + 1e-5
first. This reader stands before that of BatchTopK by its name, because their files look alike.

Sources: arXiv 2503.24277; SewoongLee/top-afa-sae: training/sae.py, config.py, logs.py, main.ipynb.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, folder_of, read_settings, require_files
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import hub_name, site_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

CONFIG, WEIGHTS = "config.json", "sae.pt"
LAYOUT: Final = Layout("W_enc", "W_dec", "b_enc", "b_dec")
KIND: Final = "topafa"


@dataclass(frozen=True, slots=True)
class Afa:
    """Top-AFA: sae.pt + config.json with sae_type topafa; as many features as match the input's norm."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        try:
            values = read_settings(folder_of(path, CONFIG, WEIGHTS) / CONFIG).values
        except CheckpointError:
            return False
        return values.get("sae_type") == KIND and {"act_size", "dict_size"} <= values.keys()

    def describe(self, path: Path) -> DictionarySpec:
        """Reads config.json and headers. Raises CheckpointError."""
        folder = folder_of(path, CONFIG, WEIGHTS)
        require_files(folder, CONFIG, WEIGHTS)
        spec = _configured(folder, read_settings(folder / CONFIG))
        weights = folder / WEIGHTS
        check_shapes(weights, read_headers(weights), LAYOUT.shapes(spec))
        return replace(spec, identity=fingerprint([folder / CONFIG, weights]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        weights = LAYOUT.weights(read_tensors(spec.path / WEIGHTS, LAYOUT.shapes(spec), device))
        return replace(weights, b_pre_D=weights.b_dec_O, b_enc_F=weights.b_enc_F * 0)


def _configured(folder: Path, settings: Settings) -> DictionarySpec:
    """What config.json says; the identity is left empty."""
    hook, normalised = settings.text("hook_point"), settings.flag("input_unit_norm", False)
    return DictionarySpec(
        format="afa",
        path=folder,
        identity="",
        d_in=settings.count("act_size"),
        width=settings.count("dict_size"),
        selector="top_afa",
        k=None,
        hook=hook,
        site=site_of(hook),
        model=hub_name(settings.text("model_name")),
        corpus=settings.text("dataset_path"),
        context_length=settings.integer("seq_len"),
        prepend_bos=True,
        transform=("layer_norm",) if normalised else (),
        # The trainer's model is centred by TransformerLens, and layer_norm centres anyway.
        model_was_centred=not normalised and settings.flag("center_writing_weights", True),
        centring_is_default=not normalised and "center_writing_weights" not in settings.values,
        decoder_norm_gate=True,
        value_is_score=False,
        notes=("b_dec is subtracted", "a token has as many features as bring their norm nearest to its own"),
    )
