"""What a pickle holds, found without running it.

A pickle is a program for a small stack machine, and two of its instructions import and call anything. This
machine knows only the instructions that build plain values, and only the few names that torch writes for
tensors; a tensor becomes a description of where it lies. The first other name ends the reading, so nothing
of the file is ever imported or called. Instructions: CPython's pickletools.py.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from autointerp.dictionaries.checkpoint import first_line, shortened
from autointerp.errors import CheckpointError

STORAGES: Final = {
    "torch DoubleStorage": ("F64", 8),
    "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch LongStorage": ("I64", 8),
    "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2),
    "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1),
    "torch BoolStorage": ("BOOL", 1),
}
"""Class that torch names for a storage -> dtype as safetensors spells it, bytes an element."""
DTYPES: Final = frozenset(
    f"torch {name}"
    for name in "float64 float32 float16 bfloat16 double float half int64 int32 int16 int8 uint8 bool".split()
)

MAX_AXES: Final = 16


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the archive."""

    dtype: str
    itemsize: int
    key: str
    """The file `data/<key>` of the archive."""
    n_elements: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    storage: Storage
    offset: int
    """In elements."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function that the pickle names: `module name`."""

    text: str


class _Mark:
    """Where the items of a container begin on the stack."""


def unpickled(data: bytes, path: Path) -> object:
    """The value that `data` builds: dicts, lists, tuples, texts, numbers, None, StoredTensor.

    `path`: of the file, for messages. Raises CheckpointError: a class or function that tensors don't need,
    an instruction that plain values don't need, or damage.
    """
    machine = _Machine(path)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            step = _STEPS.get(opcode.name)
            if step is None:
                machine.damaged(f"instruction {opcode.name}")
            step(machine, argument)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its pickle is damaged ({first_line(error) or type(error).__name__}). Copy or download it "
            "again."
        ) from error
    if len(machine.stack) != 1:
        machine.damaged(f"{len(machine.stack)} values")
    return machine.stack[0]


class _Machine:
    """Stack and memory. Every step that meets other types than it needs calls `damaged`, or raises one of
    the errors that `unpickled` expects."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.stack: list[object] = []
        self.memory: dict[int, object] = {}

    def damaged(self, what: str) -> NoReturn:
        raise CheckpointError(
            f"{self._path}: its pickle holds {what}, which a file of tensors does not. Is it another file, or "
            "damaged?"
        )

    def items(self) -> list[object]:
        """Takes what lies above the last mark, and the mark."""
        backwards = range(len(self.stack) - 1, -1, -1)
        place = next((place for place in backwards if isinstance(self.stack[place], _Mark)), None)
        if place is None:
            self.damaged("a container without a beginning")
        taken = self.stack[place + 1 :]
        del self.stack[place:]
        return taken

    def remember(self, place: int) -> None:
        self.memory[place] = self.stack[-1]

    def name(self, text: str) -> None:
        if text not in _CALLED and text not in STORAGES and text not in DTYPES:
            raise CheckpointError(
                f"{self._path} holds an object of class '{shortened(text.replace(' ', '.'))}', and opening "
                "such a pickle runs what code it likes. If you trust where it comes from, take the tensors "
                "out of it in a Python of your own and save those alone, with safetensors or "
                "torch.save({name: tensor, ...}, path)."
            )
        self.stack.append("torch." + text.split()[1] if text in DTYPES else _Name(text))

    def storage(self) -> None:
        """('storage', class, key, device, n_elements)."""
        fields = _typed(self.stack.pop(), tuple)
        kind, named, key, _, n_elements = fields
        dtype = STORAGES.get(_typed(named, _Name).text)
        if kind != "storage" or dtype is None:
            self.damaged("a reference that is no storage")
        self.stack.append(Storage(*dtype, _typed(key, str), _count(n_elements)))

    def call(self) -> None:
        arguments = cast(tuple[Any, ...], _typed(self.stack.pop(), tuple))
        called = _CALLED.get(_typed(self.stack.pop(), _Name).text)
        if called is None:
            self.damaged("a call of a type")
        self.stack.append(called(arguments))

    def state(self) -> None:
        """An object's attributes, of which none matters here (`_metadata` of a module's state)."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | StoredTensor):
            self.damaged("attributes of a plain value")

    def set_items(self, items: list[object]) -> None:
        into = cast(dict[Any, object], _typed(self.stack[-1], dict))
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A tuple as key can be made so deep that its hash never ends.
            if key is not None and not isinstance(key, str | int | float):
                self.damaged(f"a {type(key).__name__} as a key")
            into[key] = value

    def append(self, items: list[object]) -> None:
        cast(list[object], _typed(self.stack[-1], list)).extend(items)

    def tuple_of(self, n: int) -> None:
        if n > len(self.stack):
            self.damaged("a tuple without its items")
        self.stack[len(self.stack) - n :] = [tuple(self.stack[len(self.stack) - n :])]

    def pop_two(self) -> list[object]:
        last = self.stack.pop()
        return [self.stack.pop(), last]


def _typed(value: object, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a {type(value).__name__} that is no number of elements")
    return value


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, ...)."""
    storage, offset, shape, strides, *_ = arguments
    shape = tuple(_count(n) for n in _typed(shape, tuple))
    strides = tuple(_count(n) for n in _typed(strides, tuple))
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise ValueError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    return StoredTensor(_typed(storage, Storage), _count(offset), shape, strides)


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, object]:
    if arguments:
        raise ValueError("an OrderedDict that is not built item by item")
    return {}


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    return _typed(arguments[0], StoredTensor)


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    (shape,) = arguments
    return _typed(shape, tuple)


def _device(arguments: tuple[Any, ...]) -> str:
    return _typed(arguments[0], str)


_CALLED: Final[dict[str, Callable[[tuple[Any, ...]], object]]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch Size": _size,
    "torch device": _device,
}
"""What may be called, and the inert thing that is called in its place."""


def _nothing(_machine: _Machine, _argument: object) -> None:
    pass


def _push(machine: _Machine, argument: object) -> None:
    machine.stack.append(argument)


def _pushing(make: Callable[[], object]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


_STEPS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _push),
    "NONE": _push,  # genops gives None as the argument
    "NEWTRUE": _pushing(lambda: True),
    "NEWFALSE": _pushing(lambda: False),
    "MARK": _pushing(_Mark),
    "EMPTY_DICT": _pushing(dict),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_TUPLE": _pushing(tuple),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.items())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "BINPUT": lambda machine, place: machine.remember(place),
    "LONG_BINPUT": lambda machine, place: machine.remember(place),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memory)),
    "BINGET": lambda machine, place: machine.stack.append(machine.memory[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memory[place]),
    "GLOBAL": lambda machine, text: machine.name(text),
    "STACK_GLOBAL": lambda machine, _: machine.name(
        " ".join(_typed(part, str) for part in machine.pop_two())
    ),
    "BINPERSID": lambda machine, _: machine.storage(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.state(),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_two()),
    "SETITEMS": lambda machine, _: machine.set_items(machine.items()),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.items()),
}
"""pickletools' name of an instruction -> what it does. What is not here is not followed."""
