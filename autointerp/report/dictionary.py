"""What a checkpoint is, from its headers: `autointerp sae inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Final

from autointerp.dictionaries.locate import find_by_headers
from autointerp.dictionaries.spec import BASIS_SHARE, DictionarySpec, Selector
from autointerp.dictionaries.thresholds import Calibration
from autointerp.distant import Distant
from autointerp.identity import WHOLE_UP_TO

_IDENTITY: Final = f"with --identity, which reads at most {WHOLE_UP_TO // 2**20} MiB of each file"
_WORDS: Final[dict[Selector, str]] = {
    "top_afa": "of a token the largest, as many as match the norm of its input",
    "nnls": "the non-negative codes that reconstruct best, found with the decoder alone",
    "custom": "code of its own",
}
_LARGEST: Final = "the neurons themselves, of a token the largest by magnitude"
_BASES: Final[dict[Selector, str]] = {
    "relu": "the weights that the router gives the experts, above 0 for those that a token goes to",
    "abstopk": f"{_LARGEST}, one in {BASIS_SHARE}",
}


def inspected(text: str, *, identity: bool = False) -> Iterator[tuple[str, str]]:
    """(what, value) of the dictionary that `text` names, from headers and configuration alone; with `identity` also
    from what that takes of files that are not here. Raises CheckpointError."""
    found = find_by_headers(text, identity=identity)
    spec = found.spec
    known = "not said: --model" if spec.model is None else spec.model
    if spec.n_models > 1:
        known = f"{spec.n_models} models, whose vectors must come from files: --activations FOLDER"
    if (n_bytes := found.fetched_whole) is not None:
        size = f", {_size(n_bytes)}" if n_bytes else ""
        yield "fetched", f"the whole dictionary{size}: its server gives no parts of a file"
    yield "format", spec.format
    yield "path", str(spec.path)
    yield "model", known
    yield "reads", _place(spec.site, spec.hook)
    if spec.further_sites:
        yield "and reads", ", ".join(map(str, spec.further_sites))
    if spec.is_transcoder:
        yield "predicts", _output(spec)
    yield (
        "features",
        "as many as the model has" if spec.is_basis else f"{spec.width:,}" + " x 2 poles" * spec.signed,
    )
    yield "input size", f"{spec.d_in:,}" if spec.is_sized else "as the model has"
    yield "selector", _selector(spec)
    yield "input first", ", then ".join(spec.transform) or "as it is"
    if spec.model_was_centred:
        yield "centred", "where the model has LayerNorm, what is written to its stream loses its mean first"
    if not spec.reconstructs and not spec.is_basis:  # a basis was not trained
        yield "reconstructs", "no: decoding its codes alone doesn't give what it was trained to give"
    if spec.calibration is not None:
        yield "thresholds", _calibration(spec.calibration)
    if spec.decoder_norm_gate:
        what = "scores" if spec.value_is_score else "pre-activations"
        yield "scores", f"pre-activations times the norms of decoder rows; activations are {what}"
    if spec.by_input:
        yield "selects", f"each of the {spec.n_inputs} inputs by itself; active where any does"
    if spec.gradient_weight is not None:
        what = f"z (1 + {spec.gradient_weight:g} |W_dec g|), with z the activation, g the gradient of the row's loss"
        yield (
            "chosen by",
            f"{what}: a backward pass of the whole model; codes depend on the tokens behind, too",
        )
    if spec.group_sizes:
        yield "levels", ", ".join(f"{size:,}" for size in spec.group_sizes)
    for flag, value in (("sliceable", spec.feature_sliceable), ("signed", spec.signed)):
        yield flag, "yes" if value else "no"
    yield "contexts", _contexts(spec)
    yield "trained on", spec.corpus or "not said"
    expected = {"L0": spec.expected.l0, "FVU": spec.expected.fvu}
    stated = ", ".join(f"{name} {value:.4g}" for name, value in expected.items() if value is not None)
    yield "states", stated or "neither L0 nor FVU"
    if spec.approximation:
        yield "approximated", spec.approximation
    for note in spec.notes:
        yield "note", note
    yield "identity", spec.identity or _unknown_identity(found.unread)


def _unknown_identity(unread: Sequence[Distant]) -> str:
    if len(unread) == 1:
        file = PurePosixPath(unread[0].name.partition(":")[2]).name
        return f"known when the file is here ({file}, {_size(unread[0].size)}), or {_IDENTITY}"
    files = ", ".join(f"{file.name}, {_size(file.size)}" for file in unread)
    return f"known when the files are here ({files}), or {_IDENTITY}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _selector(spec: DictionarySpec) -> str:
    if spec.is_basis:
        return _BASES[spec.selector] if spec.k is None else f"{spec.selector}, k = {spec.k:,}: {_LARGEST}"
    if spec.custom_code is not None:
        return f"{spec.selector}: {spec.custom_code}"
    if spec.selector != "pursuit":
        words = _WORDS.get(spec.selector)
        k = "" if spec.k is None else f", k = {spec.k:,}"
        return spec.selector + k + (f": {words}" if words else "")
    steps = f"pursuit: {spec.k or spec.d_in:,} steps, by the largest product"
    steps += " in magnitude" * spec.has_signs
    ends = ["adds no new feature"] * spec.pursuit.ends_on_repeat
    if spec.pursuit.residual_below > 0:
        ends.append(f"leaves less than norm {spec.pursuit.residual_below:.4g}")
    return steps + (f", fewer where one {' or '.join(ends)}" if ends else "")


def _output(spec: DictionarySpec) -> str:
    """No flag names one, so none is asked for."""
    if spec.writes_to is not None:
        return f"a part of {spec.writes_to}"
    known = spec.site_out is not None or spec.hook_out is not None
    return _place(spec.site_out, spec.hook_out) if known else "not said"


def _place(site: object, hook: str | None) -> str:
    if site is None:
        return f"not understood: {hook}" if hook else "not said: --hook"
    return str(site) if hook in (None, str(site)) else f"{site} ({hook})"


def _calibration(calibration: Calibration) -> str:
    of = "" if calibration.pool is None else f" among {calibration.pool:,} features"
    return f"found on the run's own tokens ({calibration.rule}, {calibration.k:g} a token{of}), then frozen"


def _contexts(spec: DictionarySpec) -> str:
    length = "of unknown length" if spec.context_length is None else f"of {spec.context_length:,} tokens"
    return f"{length}, {'BOS first' if spec.prepend_bos else 'no BOS'}"
