"""BatchTopKSAE of dictionary_learning's fork by Julian Minder and Clement Dumas (files and normaliser:
`minder_files.py`).

    encoder.weight [F, D], encoder.bias [F]      f = relu(encoder(x - b_dec)), where it is above the threshold
    decoder.weight [D, F], b_dec [D]             x_hat = decoder(f) + b_dec
    threshold []                                 -1 where training never set it: relu

A finished ae.pt of the original library's has the same tensors but the normaliser's, and a config.json that says so:
it is `dictionary_learning.py`'s.

Sources: science-of-finetuning/dictionary_learning at 173f7fa, jkminder/dictionary_learning at 48debb2: dictionary.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.dictionary_learning import DictionaryLearning
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.minder_files import MEAN, Normaliser, Stored
from autointerp.dictionaries.spec import DictionarySpec, Expected, Weights
from autointerp.dictionaries.tensors import KINDS, Shapes, check_shapes
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

LAYOUT: Final = Layout("encoder.weight", "decoder.weight", "encoder.bias", "b_dec", linear=True)
THRESHOLD: Final = "threshold"


@dataclass(frozen=True, slots=True)
class BatchTopkSae:
    """BatchTopKSAE of jkminder's dictionary_learning: model.safetensors or .pt; above one threshold."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        if path.is_file() and path.suffix not in KINDS:
            return False
        try:
            stored = Stored.of(path)
        except CheckpointError:
            return False
        if not stored.headers.keys() >= {*LAYOUT.names, THRESHOLD}:
            return False
        return MEAN in stored.headers or not DictionaryLearning().recognises(stored.path)

    def describe(self, path: Path) -> DictionarySpec:
        """Reads headers and configuration. Raises CheckpointError."""
        stored = Stored.of(path)
        settings = stored.settings
        d_in, width = LAYOUT.sizes(stored.path, stored.headers)
        layer = settings.integer("layer")
        named = () if layer is None else (f"layer {layer} is named, but not what was read there",)
        spec = DictionarySpec(
            format="batch_topk_sae",
            path=stored.path,
            identity=fingerprint(stored.files),
            d_in=d_in,
            width=width,
            selector="jumprelu",
            k=None,
            hook=None,
            site=None,
            model=settings.text("lm_name"),
            corpus=None,
            context_length=None,
            prepend_bos=True,
            expected=Expected(l0=settings.number("k")),
            notes=(
                "b_dec is subtracted, after the normaliser where one is stored",
                "of a batch's top k the stored threshold stands, which training leaves at -1 where it never set it",
                *named,
            ),
        )
        headers = {stored.prefix + name: header for name, header in stored.headers.items()}
        check_shapes(stored.path, headers, _shapes(spec, stored))
        return spec

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the file is another than described."""
        stored = Stored.of(spec.path)
        tensors = stored.tensors(_shapes(spec, stored), device)
        weights = LAYOUT.weights(tensors)
        norm, b_dec_D = Normaliser.of(stored, weights.b_dec_O), weights.b_dec_O
        return replace(
            weights,
            w_enc_DF=weights.encoder * norm.into,
            b_pre_D=norm.mean + b_dec_D / norm.into,
            w_dec_FO=weights.decoder * norm.out,
            b_dec_O=b_dec_D * norm.out + norm.mean,
            threshold_F=tensors[THRESHOLD].expand(spec.width).contiguous(),
        )


def _shapes(spec: DictionarySpec, stored: Stored) -> Shapes:
    return {**LAYOUT.below(stored.prefix).shapes(spec), stored.prefix + THRESHOLD: ()}
