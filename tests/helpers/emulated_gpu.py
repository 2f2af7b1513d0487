"""A GPU for tests on machines without one: what it waits for, and what it launches.

Tensors hold real data in the memory of the CPU, and say that they are on ``cuda:0``. Not emulated:
speed, memory, streams, mixed precision, and the order of atomic additions.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
import traceback
import unittest.mock
import warnings
from pathlib import Path
from typing import Any, Callable, NamedTuple
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

DEVICE = torch.device("cuda", 0)

# Operators that start no kernel, beside views.
_FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"),
    *("_unsafe_view", "_local_scalar_dense", "lift_fresh", "is_same_size", "detach", "alias"),
}
# Operators whose result the host must know, or whose size depends on values.
_WAITING = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "nms"),
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_COPIES = {"copy_", "_copy_from", "copy"}


class Event(NamedTuple):
    """One launch of a kernel, or one wait for the device.

    Attributes:
        what: name of the operator or kernel.
        where: "alrp/losses/ranking.py:120", the innermost line of the package or of Detectron2; ""
            if there is none.
    """

    what: str
    where: str


class EmulatedTensor(torch.Tensor):
    """Data of the CPU that is said to be on ``cuda:0``."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        # PyTorch's core takes it for a tensor of the CPU: its autograd would look for a GPU.
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cpu",
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on an emulated tensor outside of its EmulatedGPU")

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return EmulatedTensor(inner["held"])

    def to(self, *args, **kwargs):
        args = _as_device_and_dtype(args)
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            moved = self.cpu(non_blocking=non_blocking)
            return moved if dtype is None else moved.to(dtype)
        return self if dtype is None else torch.Tensor.to(self, dtype)

    def cpu(self, memory_format=None, non_blocking=False):
        if not non_blocking:
            _active().wait("copy to the CPU")
        return _ToCPU.apply(self)

    def cuda(self, *args, **kwargs):
        return self

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        return torch.tensor(
            data, dtype=dtype or self.dtype, device=device or DEVICE, requires_grad=requires_grad
        )

    def __repr__(self, **kwargs):
        return f"EmulatedTensor({self.held})"


class _ToCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.held.detach().clone()

    @staticmethod
    def backward(ctx, grad):
        return EmulatedTensor(grad)


class EmulatedGPU(TorchDispatchMode):
    """In a ``with`` block, ``cuda`` works, and refuses what a GPU would.

    Kernels of Triton run in its interpreter, which must be on.

    Attributes:
        waits: for the device.
        launches: of kernels; an operator of PyTorch counts as one.
        measured: the devices whose memory was asked for, or which were waited for before reading a
            clock; None is the current device. The memory is always 0.

    Example:
        >>> with EmulatedGPU() as gpu:
        ...     total = torch.ones(3, device="cuda").sum().item()
        >>> [event.what for event in gpu.launches], [event.what for event in gpu.waits]
        (['ones', 'sum'], ['_local_scalar_dense'])
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Event] = []
        self.launches: list[Event] = []
        self.measured: list = []
        self._sync_debug_mode = "default"

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        for name, value in self._cuda_functions().items():
            self._stack.enter_context(unittest.mock.patch.object(torch.cuda, name, value))
        self._stack.enter_context(_kernels_run_here(self))
        self._stack.enter_context(unittest.mock.patch(f"{__name__}._ACTIVE", [self]))
        self._stack.enter_context(_NumberedDevices())
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._stack.close()

    def clear(self) -> None:
        """Forget the events so far."""
        self.waits.clear()
        self.launches.clear()

    def of_package(self, events: list[Event]) -> list[Event]:
        """Those whose innermost line is the package's own."""
        return [event for event in events if event.where.startswith("alrp/")]

    def wait(self, what: str) -> None:
        """Note a wait; warn or fail as ``torch.cuda.set_sync_debug_mode`` says."""
        self.waits.append(Event(what, _innermost_line()))
        message = f"called a synchronizing CUDA operation: {what} at {self.waits[-1].where}"
        if self._sync_debug_mode == "error":
            raise RuntimeError(message)
        if self._sync_debug_mode == "warn":
            warnings.warn(message)

    def launch(self, what: str) -> None:
        """Note a launch."""
        self.launches.append(Event(what, _innermost_line()))

    def _synchronize(self, device=None) -> None:
        self.measured.append(device)

    def _memory(self, device=None) -> int:
        self.measured.append(device)
        return 0

    def _cuda_functions(self) -> dict[str, Callable]:
        def set_sync_debug_mode(mode: str) -> None:
            self._sync_debug_mode = mode

        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "synchronize": self._synchronize,
            "max_memory_allocated": self._memory,
            "memory_allocated": self._memory,
            "reset_peak_memory_stats": lambda device=None: None,
            "get_device_name": lambda device=None: "emulated",
            "Event": _Clock,
            "device": contextlib.nullcontext,
            "set_sync_debug_mode": set_sync_debug_mode,
            "_lazy_init": lambda: None,
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_gpu = any(isinstance(x, EmulatedTensor) for x in tensors)
        device = kwargs.get("device")
        to_gpu = device is not None and torch.device(device).type == "cuda"
        if not on_gpu and not to_gpu:
            return func(*args, **kwargs)
        if device is not None:
            kwargs["device"] = torch.device("cpu")  # of the data that is held
        if name in _COPIES:
            return self._copy(func, *args, **kwargs)
        if name == "_to_copy":
            return self._moved(func, args[0], kwargs, to_gpu)
        _refuse_mixed_devices(func, name, tensors, args)
        self._note(func, name, args, kwargs)
        output = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        wrapped = tree_map_only(torch.Tensor, EmulatedTensor, output)
        if func.namespace == "aten" and any(r.alias_info for r in func._schema.returns):
            return return_and_correct_aliasing(func, args, kwargs, wrapped)
        return wrapped

    def _note(self, func, name: str, args: tuple, kwargs: dict) -> None:
        returns = func._schema.returns
        is_view = any(r.alias_info and not r.alias_info.is_write for r in returns)
        if name not in _FREE and not is_view:
            self.launch(name)
        if name in _WAITING:
            self.wait(name)
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.wait("repeat_interleave without output_size")
        elif name in _INDEXING:
            # A single value is filled in by the mask, without looking for its places.
            is_filling = name != "index" and args[2].numel() == 1
            for index in filter(lambda x: x is not None, args[1]):
                if not isinstance(index, EmulatedTensor):
                    self.wait("index from the CPU")
                elif index.dtype in (torch.bool, torch.uint8) and not is_filling:
                    self.wait("boolean mask as index")

    def _copy(self, func, target, source, non_blocking=False):
        if isinstance(target, EmulatedTensor) != isinstance(source, EmulatedTensor):
            if not non_blocking and source.dim() + isinstance(source, EmulatedTensor):
                self.wait("copy between devices")
        self.launch("copy_")
        func(_held(target), _held(source))
        return target

    def _moved(self, func, source, kwargs: dict, to_gpu: bool):
        is_moved = not isinstance(source, EmulatedTensor)
        non_blocking = kwargs.pop("non_blocking", False)
        output = func(_held(source), **kwargs)
        if is_moved and not non_blocking:
            self.wait("copy to the GPU")
        if is_moved or output.dtype != source.dtype or not to_gpu:
            self.launch("_to_copy")
        return EmulatedTensor(output)


class _Clock:
    """``torch.cuda.Event``, by the clock of the CPU."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: _Clock) -> float:
        return 1e3 * (end.seconds - self.seconds)


class _NumberedDevices(TorchFunctionMode):
    """Gives "cuda" its number, for which PyTorch would ask the driver."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].to(DEVICE)
        if func is torch.Tensor.to:
            args = (args[0], *map(_numbered, _as_device_and_dtype(args[1:])))
        if kwargs.get("device") is not None:
            kwargs["device"] = _numbered(torch.device(kwargs["device"]))
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            requires_grad = kwargs.pop("requires_grad", False)
            made = func(*args, **{**kwargs, "device": None})  # there, as PyTorch does it
            return made.to(DEVICE).requires_grad_(requires_grad)
        return func(*args, **kwargs)


def _as_device_and_dtype(args: tuple) -> tuple:
    """Arguments of ``to``, of which the first may be a tensor."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0].device, args[0].dtype, *args[1:]
    return args


def _numbered(value: Any) -> Any:
    is_cuda = value == "cuda" if isinstance(value, str) else value == torch.device("cuda")
    return DEVICE if isinstance(value, (str, torch.device)) and is_cuda else value


_ACTIVE: list[EmulatedGPU] = []


def _active() -> EmulatedGPU:
    if not _ACTIVE:
        raise RuntimeError("an emulated tensor is used outside of its EmulatedGPU")
    return _ACTIVE[0]


def _held(value: Any) -> Any:
    return value.held if isinstance(value, EmulatedTensor) else value


def _refuse_mixed_devices(func, name: str, tensors: list, args: tuple) -> None:
    """A GPU takes from the CPU single numbers, and indices.

    Tensors without elements are let pass: PyTorch's core makes some for gradients, on the CPU here.
    """
    others = [x for x in tensors if not isinstance(x, EmulatedTensor)]
    wrong = [x for x in others if x.dim() > 0 and x.numel() > 0]
    if name in _INDEXING and isinstance(args[0], EmulatedTensor):
        wrong = [x for x in wrong if not any(x is index for index in args[1])]
    if wrong:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu, "
            f"of shapes {[tuple(x.shape) for x in tensors]}"
        )


def _innermost_line() -> str:
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        name = _name_in_package(frame.f_code.co_filename)
        if name:
            return f"{name}:{line}"
    return ""


@functools.lru_cache(maxsize=None)
def _name_in_package(filename: str) -> str:
    path = Path(filename)
    for folder in path.parents:
        # Not a checkout of that name, which holds other things too.
        if folder.name in ("alrp", "detectron2") and (folder / "__init__.py").exists():
            return str(path.relative_to(folder.parent))
    return ""


@contextlib.contextmanager
def _kernels_run_here(gpu: EmulatedGPU):
    """Triton's kernels take emulated tensors, and each call counts as a launch."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        yield
        return
    run = GridExecutor.__call__

    def noted(self, *args, **kwargs):
        gpu.launch(self.fn.__name__)
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and not isinstance(value, EmulatedTensor):
                raise ValueError(f"{self.fn.__name__}: a tensor of the CPU cannot be accessed")
        with _disable_current_modes():
            return run(self, *map(_held, args), **tree_map(_held, kwargs))

    with unittest.mock.patch.object(GridExecutor, "__call__", noted):
        yield
