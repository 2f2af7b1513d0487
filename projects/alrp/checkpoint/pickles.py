"""Pickle files of NumPy arrays, as in Detectron2's and Detectron's zoos, read without running them.

A pickle is a program that may call any function. Here it can call the few stand-ins below only,
which make arrays and plain Python objects; NumPy's own functions are not among them, since they
trust what they are given.
"""

from __future__ import annotations

import numpy as np
import pickle
import re
from collections import OrderedDict
from typing import Any, Callable

_NUMBER = re.compile(r"[biuf][1248]|f16|c8|c16")


class ForeignClass(pickle.UnpicklingError):
    """A pickle names a class or function that is not read; ``str()`` is its dotted name."""


def read_arrays(path: str) -> Any:
    """Content of a pickle file of NumPy arrays, numbers, text, lists, tuples, sets and dicts.

    Text of Python 2 is read as latin1, as Detectron2 does. Arrays of dicts, and of dicts in them,
    are arrays in the result; elsewhere they are stand-ins.

    Raises:
        ForeignClass: if the file holds anything else.
        Exception: if it is damaged; pickle documents no common type.
    """
    with open(path, "rb") as file:
        content = _Unpickler(file, encoding="latin1").load()
    if not isinstance(content, dict):
        return content
    return {
        key: _unwrapped_values(value) if isinstance(value, dict) else _unwrapped(value)
        for key, value in content.items()
    }


def _unwrapped_values(values: dict) -> dict:
    return {key: _unwrapped(value) for key, value in values.items()}


def _unwrapped(value: Any) -> Any:
    return value.array if isinstance(value, _ArrayStandIn) else value


class _DTypeStandIn:
    """Stand-in of a ``numpy.dtype`` of numbers."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, *_: Any) -> None:
        if not _NUMBER.fullmatch(str(name)):
            raise ForeignClass(f"numpy.dtype({name!r})")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _ArrayStandIn:
    """Stand-in of a ``numpy.ndarray``; ``array`` is one once the state is known."""

    __slots__ = ("array",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _from_buffer(_as_bytes(data), dtype, shape, "F" if is_fortran else "C").array


def _as_bytes(data: Any) -> bytes:
    # Strings of Python 2 arrive as latin1 text.
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))


def _from_buffer(data: Any, dtype: _DTypeStandIn, shape: tuple, order: str) -> _ArrayStandIn:
    result = _ArrayStandIn()
    result.array = np.frombuffer(_as_bytes(data), dtype.dtype).reshape(shape, order=order).copy()
    return result


def _scalar(dtype: _DTypeStandIn, data: Any) -> Any:
    return np.frombuffer(_as_bytes(data), dtype.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    return text.encode("latin1")


def _none(*_: Any) -> None:
    raise pickle.UnpicklingError("numpy.ndarray is called")


_ADMITTED: dict[str, Callable] = {
    "_codecs.encode": _encode,
    "builtins.bytearray": _as_bytes,
    "builtins.bytes": lambda data=b"": _as_bytes(data),
    "builtins.complex": complex,
    "builtins.frozenset": frozenset,
    "builtins.set": set,
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _DTypeStandIn,
    "numpy.multiarray._reconstruct": lambda *_: _ArrayStandIn(),
    "numpy.multiarray.scalar": _scalar,
    "numpy.ndarray": _none,  # named by every array, called by none
    "numpy.numeric._frombuffer": _from_buffer,
}
_CORE = re.compile(r"numpy\._?core\.")  # renamed in NumPy 2


class _Call:
    """A function of ``_ADMITTED`` that the pickle may call; it has nothing else to offer."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Call:
        module = module.replace("__builtin__", "builtins")
        function = _ADMITTED.get(_CORE.sub("numpy.", f"{module}.{name}"))
        if function is None:
            raise ForeignClass(f"{module}.{name}")
        return _Call(function)
