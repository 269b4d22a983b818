"""What somebody's own `load` gives, and what an `encode` or `predict` of it gives: looked at before it is used.

Shapes: n tokens, K codes of each, T tokens of a row, D = d_in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, cast

import torch
from torch import Tensor

from autointerp.dictionaries.outside import errors_told
from autointerp.dictionaries.spec import BY_DECODER, DictionarySpec, Gate, Weights
from autointerp.errors import CheckpointError

Axes = tuple[tuple[str, int], ...]
"""Each what it is and its length."""


def checked(text: str, spec: DictionarySpec, weights: object, device: str) -> Weights:
    """The same, without gradients, and with an `encode` and `predict` that are checked. `text`: of `--sae`. Raises
    CheckpointError."""

    def refuse(what: str) -> NoReturn:
        raise CheckpointError(f"--sae {text}: of what its load gives {what}")

    if not isinstance(weights, Weights):
        raise CheckpointError(
            f"--sae {text}: its load gives a {type(weights).__name__}; it must give an "
            f"autointerp.dictionaries.spec.Weights."
        )
    if spec.selector == "gated" and not isinstance(weights.gate, Gate):
        refuse(f"gate is a {type(weights.gate).__name__}: the selector gated needs a spec.Gate.")
    for name, tensor, axes, is_needed in _tensors(spec, weights):
        if tensor is not None or is_needed:
            # Above an infinite threshold is nothing: such a feature is switched off.
            fault = _fault(tensor, axes, device, may_be_infinite=name == "threshold_F")
            if fault is not None:
                refuse(f"{name} {fault}")
    for name, function, is_needed in (
        ("encode", weights.encode, spec.selector == "custom"),
        ("predict", weights.predict, spec.needs_sequence),
    ):
        if is_needed and not callable(function):
            why = "the selector custom" if name == "encode" else "needs_sequence"
            refuse(f"{name} is a {type(function).__name__}: {why} needs a function.")
    if weights.encode is not None and spec.selector != "custom":
        refuse(f"encode is there, and the selector is {spec.selector}. Say custom, or leave encode out.")
    if weights.w_skip_DO is not None and not spec.is_transcoder:
        refuse("w_skip_DO is there, and it is no transcoder (is_transcoder). Leave it out.")
    return dataclasses.replace(
        _without_gradients(weights),
        encode=None if weights.encode is None else CheckedEncode(text, spec, weights),
        predict=None if weights.predict is None else CheckedPredict(text, weights),
    )


def _tensors(spec: DictionarySpec, weights: Weights) -> Iterator[tuple[str, object, Axes, bool]]:
    """Name, tensor, axes, and whether it must be there."""
    d, f, o = ("d_in", spec.d_in), ("width", spec.width), ("d_out", spec.d_out or spec.d_in)
    has_encoder = not spec.is_basis and spec.selector != "custom" and spec.selector not in BY_DECODER
    has_threshold = spec.selector == "jumprelu" and spec.calibration is None
    yield "b_enc_F", weights.b_enc_F, (f,), True
    yield "b_pre_D", weights.b_pre_D, (d,), True
    yield "b_dec_O", weights.b_dec_O, (o,), True
    yield "w_enc_DF", weights.w_enc_DF, (d, f), has_encoder
    yield "w_dec_FO", weights.w_dec_FO, (f, o), not spec.is_basis
    yield "threshold_F", weights.threshold_F, (f,), has_threshold
    yield "score_norm_F", weights.score_norm_F, (f,), False
    yield "input_share_LF", weights.input_share_LF, (("n_inputs", spec.n_inputs), f), spec.by_input
    yield "w_skip_DO", weights.w_skip_DO, (d, o), False
    if weights.gate is not None:
        yield "gate.bias_F", weights.gate.bias_F, (f,), True
        yield "gate.scale_F", weights.gate.scale_F, (f,), True
        yield "gate.magnitude_bias_F", weights.gate.magnitude_bias_F, (f,), True


def _fault(tensor: object, axes: Axes, device: str, *, may_be_infinite: bool) -> str | None:
    """The value, and what is expected; None of a tensor as it should be. Waits for the device."""
    expected = f"expected a tensor of float32 [{', '.join(f'{what} {length}' for what, length in axes)}]"
    if not isinstance(tensor, Tensor):
        return f"is {'missing' if tensor is None else f'a {type(tensor).__name__}'}: {expected}."
    shape = tuple(length for _, length in axes)
    if tuple(tensor.shape) != shape:
        swapped = len(shape) == 2 and tuple(tensor.shape) == shape[::-1]
        hint = " The axes are swapped: transpose it." if swapped else ""
        return f"has shape {list(tensor.shape)}: {expected}, as the DictionarySpec says.{hint}"
    if tensor.dtype != torch.float32:
        return f"is of {tensor.dtype}: {expected}. Its float() is."
    if tensor.device.type != torch.device(device).type:
        return f"is on {tensor.device}: expected on {device}, the device that load is given."
    values = tensor.detach()
    if may_be_infinite:
        values = values.clamp(max=torch.finfo(values.dtype).max)
    # A mask of all values would need more memory than the tensor itself.
    if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all():
        n_bad = values.numel() - int(values.isfinite().sum())
        return f"holds {n_bad:,} values of {tensor.numel():,} that are NaN or infinite: expected numbers."
    return None


def _without_gradients(weights: Weights) -> Weights:
    """Parameters of a module have gradients, which NumPy refuses."""

    def detached(of: Weights | Gate) -> dict[str, Tensor]:
        values = {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}
        return {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}

    gate = weights.gate
    if gate is not None:
        gate = dataclasses.replace(gate, **detached(gate))
    return dataclasses.replace(weights, gate=gate, **detached(weights))


@dataclass(slots=True, eq=False)
class CheckedEncode:
    """A `spec.Encode` whose every result is looked at.

    Types and shapes cost nothing. Values lie on the device, and to look at them is to wait for it: so on a GPU they
    are looked at here on the first call alone (the check of the first tokens, before anything is cached), and
    later when the codes have been copied anyway (`Collected.kept`). On a CPU always."""

    text: str
    spec: DictionarySpec
    weights: Weights
    is_known: bool = False
    """Whether there was a call before."""

    def __call__(self, x_nD: Tensor) -> tuple[Tensor, Tensor]:
        encode = self.weights.encode
        assert encode is not None
        with errors_told(self.text, "its encode", encode, passing=(torch.OutOfMemoryError,)):
            given = encode(x_nD)
        value_nK, feature_nK = self._columns(given, x_nD)
        # Of activations that are NaN nothing sound can come, and who gets the codes tells of the model then.
        if (value_nK.device.type == "cpu" or not self.is_known) and x_nD.isfinite().all():
            self._check_values(value_nK, feature_nK)
        if not self.is_known:
            self._check_unique(value_nK, feature_nK)
            self.is_known = True
        # What isn't active may be of any feature, also of none (-1, say).
        return value_nK.float(), torch.where(self._fires(value_nK), feature_nK.long(), 0)

    def _fires(self, value_nK: Tensor) -> Tensor:
        return value_nK != 0 if self.spec.signed else value_nK > 0

    def _columns(self, given: object, x_nD: Tensor) -> tuple[Tensor, Tensor]:
        n, expected = len(x_nD), "expected two tensors [n, K], values (float) and features (integer)"
        if not isinstance(given, tuple | list):
            self._refuse(f"gives a {type(given).__name__}: {expected}.")
        if len(given) != 2 or not all(isinstance(one, Tensor) for one in given):
            self._refuse(f"gives {[type(one).__name__ for one in given][:5]}: {expected}.")
        value_nK, feature_nK = given
        if value_nK.dim() != 2 or value_nK.shape != feature_nK.shape or len(value_nK) != n:
            shapes = f"{list(value_nK.shape)} and {list(feature_nK.shape)}"
            self._refuse(f"gives, of {n:,} tokens, shapes {shapes}: {expected}, with n = {n:,}.")
        of = feature_nK.dtype
        is_integer = not (of.is_floating_point or of.is_complex or of == torch.bool)
        if not value_nK.dtype.is_floating_point or not is_integer:
            self._refuse(f"gives {value_nK.dtype} and {of}: {expected}.")
        if not value_nK.device == feature_nK.device == x_nD.device:
            self._refuse(
                f"gives tensors on {value_nK.device} and {feature_nK.device}: expected {x_nD.device}."
            )
        return value_nK, feature_nK

    def _check_values(self, value_nK: Tensor, feature_nK: Tensor) -> None:
        if not value_nK.numel():
            return
        if n_bad := int((~value_nK.isfinite()).sum()):
            self._refuse(f"gives {n_bad:,} values of {value_nK.numel():,} that are NaN or infinite.")
        feature_m = feature_nK[self._fires(value_nK)]
        if not len(feature_m):
            return
        lowest, highest = (int(one) for one in torch.aminmax(feature_m))
        if lowest < 0 or highest >= self.spec.width:
            self._refuse(f"gives features from {lowest} to {highest}: expected 0 to {self.spec.width - 1}.")

    def _check_unique(self, value_nK: Tensor, feature_nK: Tensor) -> None:
        """What is not active may stand anywhere: whoever has fewer than K codes fills up with zeros."""
        place_K = torch.arange(value_nK.shape[1], device=value_nK.device)
        sorted_nK = torch.where(self._fires(value_nK), feature_nK.long(), -1 - place_K).sort(dim=1).values
        twice_n = (sorted_nK[:, 1:] == sorted_nK[:, :-1]).any(dim=1)
        if n_twice := int(twice_n.sum()):
            self._refuse(
                f"gives a feature more than once for a token, on {n_twice:,} of {len(twice_n):,} tokens."
            )

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"--sae {self.text}: its encode {what}")


@dataclass(slots=True, eq=False)
class CheckedPredict:
    """A `spec.Predict` whose every result is looked at; its values the encoder looks at."""

    text: str
    weights: Weights

    def __call__(self, x_TD: Tensor) -> Tensor:
        predict = self.weights.predict
        assert predict is not None
        with errors_told(self.text, "its predict", predict, passing=(torch.OutOfMemoryError,)):
            given = cast(object, predict(x_TD))
        expected = f"expected a tensor of floats {list(x_TD.shape)}, as what it is given"
        if not isinstance(given, Tensor):
            raise CheckpointError(
                f"--sae {self.text}: its predict gives a {type(given).__name__}: {expected}."
            )
        if given.shape != x_TD.shape or not given.dtype.is_floating_point:
            raise CheckpointError(
                f"--sae {self.text}: its predict gives a tensor of {given.dtype} {list(given.shape)}: {expected}."
            )
        return given
