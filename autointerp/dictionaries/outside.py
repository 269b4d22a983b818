"""Code of somebody's own behind `--sae package.module:function`: run with distrust of its faults, not of its intent.

Whatever goes wrong in it comes out as one CheckpointError that names the function and the line; what it says of a
dictionary is looked at here, what it loads and encodes in `outside_weights.py`. No torch.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from traceback import walk_tb
from typing import Any, ClassVar, Final, cast, get_args

from autointerp.dictionaries.gradient_weight import check_gradient_weight
from autointerp.dictionaries.spec import Dictionary, DictionarySpec, Selector, Transform, Weights
from autointerp.distant import NotInParts, NotReached
from autointerp.errors import AutointerpError, CheckpointError, Interrupted
from autointerp.identity import fingerprint
from autointerp.types import Site

OUTSIDE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
LONGEST: Final = 500
"""Characters of an error's text that are told."""
_K_NEEDED: Final = frozenset({"topk", "abstopk", "groupmax"})
_Wrong = Callable[[str, str], str]
"""A field and what is expected -> the fault, with the field's value."""


@dataclass(frozen=True, slots=True)
class OutsideFunction:
    """The reader of the one dictionary that a function knows."""

    function: str

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        return False

    def describe(self, path: Path) -> DictionarySpec:
        return _given(self.function).spec

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        from autointerp.dictionaries.outside_weights import checked

        load = _given(self.function).load
        with errors_told(self.function, f"its load({device!r})", load):
            weights = load(device)
        return checked(self.function, spec, weights, device)


def _given(text: str) -> Dictionary:
    """What `package.module:function` gives, checked. Raises CheckpointError."""
    function = _found(text)
    with errors_told(text, "calling it without arguments", function):
        given = function()
    if not isinstance(given, Dictionary):
        raise CheckpointError(
            f"--sae {text} gives a {type(given).__name__}; it must give an "
            f"autointerp.dictionaries.spec.Dictionary."
        )
    said = cast(object, given.spec)
    if not isinstance(said, DictionarySpec):
        raise CheckpointError(
            f"--sae {text}: the spec of its Dictionary is a {type(said).__name__}; it must be an "
            f"autointerp.dictionaries.spec.DictionarySpec."
        )
    if (fault := next(_faults(said), None)) is not None:
        raise CheckpointError(f"--sae {text}: of its DictionarySpec {fault}.")
    if not callable(given.load):
        raise CheckpointError(
            f"--sae {text}: the load of its Dictionary is a {type(given.load).__name__}; it must be a function of a "
            f"device's name that gives Weights."
        )
    file = _file_of(text, function)
    spec = replace(said, format=text, path=file, identity=said.identity or fingerprint([file]))
    check_gradient_weight(spec)
    return replace(given, spec=spec)


def _found(text: str) -> Callable[[], object]:
    module, _, name = text.partition(":")
    elsewhere = "(A folder or repository is named otherwise.)"
    try:
        with errors_told(text, f"importing {module}", None, passing=(ModuleNotFoundError,)):
            imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise CheckpointError(f"--sae {text}: {error}. {elsewhere}") from error
        raise _told(text, f"importing {module}", None, error) from error
    with errors_told(text, f"looking for {name}", None):
        function = getattr(imported, name, None)
    if function is None:
        raise CheckpointError(f"--sae {text}: module '{module}' has no attribute '{name}'. {elsewhere}")
    if not callable(function):
        raise CheckpointError(
            f"--sae {text} is a {type(function).__name__}; it must be a function without arguments that gives an "
            f"autointerp.dictionaries.spec.Dictionary."
        )
    return function


def _file_of(text: str, function: Callable[[], object]) -> Path:
    """Where the function stands; of what has no source of its own (a partial) where its module does."""
    try:
        return Path(inspect.getfile(inspect.unwrap(function)))
    except TypeError:
        return Path(inspect.getfile(importlib.import_module(text.partition(":")[0])))


# --- errors --------------------------------------------------------------------------------------------


@contextmanager
def errors_told(
    text: str, doing: str, called: object, *, passing: tuple[type[Exception], ...] = ()
) -> Generator[None]:
    """What `--sae text` raises becomes one CheckpointError, but for errors that are told anyway, signals, and those
    `passing`. `called`: what is called, for where it stands if nothing of its own had begun."""
    try:
        yield
    except (AutointerpError, Interrupted, NotInParts, NotReached, *passing):
        raise
    except Exception as error:
        raise _told(text, doing, called, error) from error


def _told(text: str, doing: str, called: object, error: Exception) -> CheckpointError:
    said = " ".join(str(error).split())
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
    said = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)
    place = _place(text, called, error)
    where = "" if place is None else f" ({place[0]}, line {place[1]})"
    return CheckpointError(
        f"--sae {text}: {doing} raised {type(error).__name__}{': ' if said else ''}{said}{where}."
    )


def _place(text: str, called: object, error: Exception) -> tuple[str, int] | None:
    """(file, line): the innermost of the function's own package, so that an error in torch names the author's line
    and not torch's."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return error.filename, error.lineno
    package = re.split(r"[.:]", text)[0]
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package
    ]
    if own:
        return own[-1]
    code = getattr(inspect.unwrap(called), "__code__", None) if callable(called) else None
    return None if code is None else (code.co_filename, code.co_firstlineno)


# --- what it says of the dictionary --------------------------------------------------------------------


def _faults(spec: Any) -> Iterator[str]:
    """Of a DictionarySpec whose fields may hold anything, each with the value and what is expected. The first is
    told: later ones may only follow from it, or fail by it."""

    def wrong(field: str, expected: str) -> str:
        said = repr(getattr(spec, field))
        return f"{field} is {said if len(said) <= 100 else f'{said[:100]}...'}: expected {expected}"

    if not isinstance(spec.identity, str):
        yield wrong("identity", "a text, or '' for that of the function's file")
    if spec.selector not in get_args(Selector):
        yield wrong("selector", f"one of {', '.join(get_args(Selector))}")
    if spec.basis not in (None, "neurons", "experts"):
        yield wrong("basis", "None, or one of neurons, experts")
    if not _is_count(spec.d_in, 0):
        yield wrong("d_in", "a whole number of at least 1, or 0 for vectors of any length")
    if not _is_count(spec.width, 0 if spec.is_basis and not spec.is_sized else 1):
        yield wrong("width", "a whole number of at least 1")
    if spec.is_basis and spec.width != spec.d_in:
        yield wrong("width", f"the d_in of a basis, {spec.d_in}")
    yield from _faults_of_k(spec, wrong)
    for field in ("n_inputs", "n_models"):
        if not _is_count(getattr(spec, field), 1):
            yield wrong(field, "a whole number of at least 1")
    if spec.d_in % spec.n_inputs:
        yield wrong("n_inputs", f"a number that d_in, {spec.d_in}, can be divided by")
    if spec.by_input and not spec.decoder_norm_gate:
        yield wrong("decoder_norm_gate", "True where each input selects by itself (by_input)")
    if not (
        isinstance(spec.transform, tuple) and all(step in get_args(Transform) for step in spec.transform)
    ):
        yield wrong("transform", f"a tuple of some of {', '.join(get_args(Transform))}")
    if spec.is_transcoder and not _is_count(spec.d_out, 1):
        yield wrong("d_out", "a whole number of at least 1, the length of what a transcoder predicts")
    if not spec.is_transcoder and spec.d_out not in (None, spec.d_in):
        yield wrong("d_out", "None where it is no transcoder (is_transcoder)")
    if not isinstance(spec.site, Site | None):
        yield wrong("site", "an autointerp.types.Site, or None for what --hook says")
    if not (isinstance(spec.further_sites, tuple) and all(isinstance(s, Site) for s in spec.further_sites)):
        yield wrong("further_sites", "a tuple of autointerp.types.Site")
    if spec.context_length is not None and not _is_count(spec.context_length, 1):
        yield wrong("context_length", "a whole number of at least 1, or None where nobody knows")
    if spec.calibration is not None and spec.selector != "jumprelu":
        yield wrong("selector", "jumprelu, for which thresholds are found (calibration)")
    for field in ("input_factor", "gradient_weight"):
        if not _is_number(getattr(spec, field)):
            yield wrong(field, "a number, or None")
    if not isinstance(spec.approximation, str | None):
        yield wrong("approximation", "a text, or None if nothing is left out")


def _faults_of_k(spec: Any, wrong: _Wrong) -> Iterator[str]:
    if spec.k is None:
        if spec.selector in _K_NEEDED and spec.is_sized:
            yield wrong("k", f"a whole number of at least 1, which the selector {spec.selector} needs")
        return
    if not _is_count(spec.k, 1):
        yield wrong("k", "a whole number of at least 1, or None")
        return
    most, of = spec.width, f"the width, {spec.width:,}"
    if spec.by_input and _is_count(spec.n_inputs, 1):
        most, of = most * spec.n_inputs, f"{of}, times n_inputs"
    if spec.selector == "pursuit":
        most, of = max(most, spec.d_in), f"{of}, or d_in, {spec.d_in:,}"
    if most and spec.k > most and not (spec.selector == "pursuit" and spec.pursuit.ends_on_repeat):
        yield wrong("k", f"at most {of}")
    if spec.selector == "groupmax" and spec.width % spec.k:
        yield wrong("k", f"a number of groups that the width, {spec.width:,}, can be divided by")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    """NaN too: who uses it says what it must be."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
