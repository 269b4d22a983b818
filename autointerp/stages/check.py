"""Whether a dictionary was read as it was meant: what it does on some thousand tokens, as read and otherwise.

Runs in a child process (`device.py`); its result is a file in the run's folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import orjson
import torch
from torch import Tensor

from autointerp.activations.collect import Attached, Collector, unexplained
from autointerp.activations.looked_at import Inputs, Masking, joined
from autointerp.activations.rows import row_shards
from autointerp.dictionaries.calibrate import calibrated
from autointerp.dictionaries.conventions import Convention, alternatives
from autointerp.dictionaries.encode import Encoder
from autointerp.errors import SiteError
from autointerp.files import write_atomically
from autointerp.fits import CHECKED, Fit, LeftOut
from autointerp.journal import Part
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import VOCABULARY, Run
from autointerp.sources import DictionaryFound
from autointerp.stages.cache import choose_device, target_of
from autointerp.stages.frozen import CPU_BATCH
from autointerp.stages.loading import load_weights
from autointerp.stages.sources import open_source
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.sites import locate
from autointerp.subject.value_bias import read_folded_bias, read_value_bias
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Json, Point, Site

_OTHER_SIDE: Final[dict[Point, Point]] = {
    "mlp_in": "mlp_in_normalized",
    "mlp_in_normalized": "mlp_in",
    "attn_in": "attn_in_normalized",
    "attn_in_normalized": "attn_in",
    "mlp_out": "mlp_raw",
    "mlp_raw": "mlp_out",
    "attn_out": "attn_raw",
    "attn_raw": "attn_out",
}
_SIDES: Final[dict[Point, str]] = {
    **dict.fromkeys(("mlp_in", "attn_in"), "behind the norm's gain"),
    **dict.fromkeys(("mlp_in_normalized", "attn_in_normalized"), "before the norm's gain"),
    **dict.fromkeys(("mlp_out", "attn_out"), "behind the norm that follows"),
    **dict.fromkeys(("mlp_raw", "attn_raw"), "before the norm that follows"),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """A convention, and the vectors that it is tried on."""

    convention: Convention
    inputs: Inputs
    y_NO: Tensor | None
    """What it should make of them; None where that is not known or not here."""

    def elsewhere(self, name: str, inputs: Inputs) -> Reading:
        """The same dictionary on other vectors; what a transcoder predicts stays what it is."""
        spec, weights = self.convention.spec, self.convention.weights
        y_NO = self.y_NO if spec.is_transcoder else inputs.x_ND
        return Reading(Convention(name, spec, weights), inputs, y_NO)

    def moved(self, name: str, by_D: Tensor) -> Reading:
        """On the same vectors plus a constant."""
        inputs = dataclasses.replace(self.inputs, x_ND=self.inputs.x_ND + by_D, predicted_ND=None)
        return self.elsewhere(name, inputs)


def run_check(run: Run, resolved: Resolved, progress: Progress, stop: Stop) -> None:
    """Measures the run's dictionaries on all of its tokens. Raises InputErrors, Interrupted."""
    device = choose_device(run.recipe.resources.device)
    source = open_source(run, resolved, device, None, progress, least=1)  # nothing is explained
    with Part(run.rows(), VOCABULARY) as part:
        part.append(VOCABULARY, part.attach(".parquet", Vocabulary.of(source.tokenizer).save))
    source.make_rows(run, progress, stop)
    assert source.vectors is not None
    content: dict[str, Json] = {}
    for name, found in resolved.dictionaries.items():
        target = target_of(found, from_model=resolved.model is not None)
        twin = other_side(found, resolved.model)
        weights = load_weights(found, str(source.vectors.device))
        encoder = Encoder(found.spec, weights)
        attached = {name: Attached(found.inputs, encoder, target, target_is_centred=found.target_is_centred)}
        if twin is not None:
            attached[f"{name}/twin"] = Attached((twin,), encoder, None)
        masking = Masking(run.first_position, run.recipe.cache.sink_ratio)
        collector = Collector(source.vectors, attached, masking, CPU_BATCH)
        shards = ((shard.first_row, shard.read()) for shard in row_shards(run.rows()))
        first = collector.first_vectors(shards, run.recipe.cache.n_tokens)
        is_usual_N = masking.usual(joined(first.x_of, found.inputs))
        first = first.chosen(is_usual_N)
        left_out = LeftOut(
            first=run.recipe.cache.mask_first,
            bos=bool(run.recipe.cache.prepend_bos),
            n_massive=int((~is_usual_N).sum()),
            sink_ratio=run.recipe.cache.sink_ratio,
        )
        read = first.inputs(name, found.inputs)
        y_NO = attached[name].wanted(first.x_of)
        as_read = Reading(Convention("as read", found.spec, weights), read, y_NO)
        readings = [as_read]
        if y_NO is not None:
            readings += [
                dataclasses.replace(as_read, convention=convention)
                for convention in alternatives(found.spec, weights, read.x_ND)
            ]
            if twin is not None:
                there = first.inputs(f"{name}/twin", (twin,))
                words = f"at {twin} ({_SIDES[twin.point]})"
                readings.append(as_read.elsewhere(words, there))
            if read.predicted_ND is not None:
                alone = dataclasses.replace(read, predicted_ND=None)
                readings.append(as_read.elsewhere("with nothing predicted by the tokens before", alone))
            readings += without_value_bias(as_read, found, resolved.model)
        progress.begin(f"check · {name}", len(readings), "conventions")
        fits: list[Fit] = []
        for reading in readings:
            stop.check()
            fits.append(fit_of(reading.convention, reading.inputs, reading.y_NO))
            progress.advance()
        progress.end()
        content[name] = {"fits": [dataclasses.asdict(fit) for fit in fits]} | {
            "left_out": dataclasses.asdict(left_out)
        }
    write_atomically(run.path / CHECKED, orjson.dumps(content))


def other_side(found: DictionaryFound, model: ModelFiles | None) -> Site | None:
    """The same point on the other side of the norm or its gain, where the model has it as a place of its own:
    releases and libraries give one name to both."""
    site, spec = found.site, found.spec
    if model is None or found.further_sites or site.point not in _OTHER_SIDE or spec.needs_gradient:
        return None
    twin, model_type = Site(_OTHER_SIDE[site.point], site.layer), model.architecture.model_type
    try:
        return None if locate(twin, model_type) == locate(site, model_type) else twin
    except SiteError:
        return None


def without_value_bias(
    as_read: Reading, found: DictionaryFound, model: ModelFiles | None
) -> Iterator[Reading]:
    """For z: less what the value bias adds to it, as after TransformerLens' fold_value_biases; with it, where
    that is how it is read."""
    if model is None or found.further_sites or found.site.point != "z":
        return
    device = str(as_read.inputs.x_ND.device)
    if found.biases_of is not None:
        bias_D = read_folded_bias(model, found.site.layer, device)
        if bias_D is not None and bias_D.any():
            # What is subtracted from z and added again cancels against this.
            yield as_read.moved("with the value bias left in z", bias_D)
        return
    bias_D = read_value_bias(model, found.site.layer, device)
    if bias_D is not None and bias_D.any():
        yield as_read.moved("with the value bias taken out of z (fold_value_biases)", -bias_D)


@torch.inference_mode()
def fit_of(convention: Convention, inputs: Inputs, y_NO: Tensor | None) -> Fit:
    """On these tokens, on which thresholds are found first where the dictionary stores none. Raises
    CheckpointError where they can't be."""
    x_ND = inputs.encoded
    weights, n_columns, thresholds = convention.weights, convention.spec.n_columns, None
    if convention.spec.calibration is not None:
        found = calibrated(Encoder(convention.spec, weights), lambda: iter([x_ND]), len(x_ND))
        finite = found.threshold_F[torch.isfinite(found.threshold_F)]
        thresholds = (float(finite.min()), float(finite.max()))
        weights = dataclasses.replace(weights, threshold_F=found.threshold_F)
    encoder = Encoder(convention.spec, weights)
    codes = inputs.codes(encoder)
    n_alive = int((torch.bincount(codes.feature_M, minlength=n_columns) > 0).sum())
    fvu = ratio = None
    if y_NO is not None:
        y_hat_NO = inputs.decoded(encoder, codes)
        fvu = unexplained(y_NO, y_hat_NO)
        ratio = float((y_hat_NO.norm(dim=1) / y_NO.norm(dim=1).clamp_min(1e-12)).mean())
    return Fit(
        convention=convention.name,
        n_tokens=len(x_ND),
        l0=len(codes) / max(len(x_ND), 1),
        fvu=fvu,
        n_dead=n_columns - n_alive,
        norm_ratio=ratio,
        thresholds=thresholds,
    )
