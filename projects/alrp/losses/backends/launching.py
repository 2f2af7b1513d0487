"""Launches kernels of Triton; known ones at once.

Triton looks at every argument of a launch, to find out for what the kernel is to be compiled. That
takes twice as long as the launch itself.
"""

from __future__ import annotations

import contextlib
from typing import Any
import torch
import triton
from torch import Tensor
from triton.runtime import JITFunction

# Before Triton 3.3, what is compiled could not be called with constants, nor be the same for all
# addresses.
CAN_LAUNCH_COMPILED = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
# What Triton has compiled, by all that it compiles anew for.
_compiled: dict[tuple, Any] = {}


def launch(
    kernel,
    num_programs: int,
    typed: tuple[Tensor, ...],
    arguments: tuple,
    constants: tuple,
    num_warps: int = 4,
) -> None:
    """Launch a kernel of :func:`fused_kernels.kernel`, on the GPU of its first argument.

    Args:
        kernel: the function.
        num_programs: size of its grid.
        typed: those of the tensors whose dtype varies.
        arguments: tensors, integers and floats, in the kernel's order.
        constants: the rest of its parameters, known when it is compiled, in their order.
        num_warps: of 32 threads each, for one program.
    """
    device = arguments[0].device
    if not (CAN_LAUNCH_COMPILED and isinstance(kernel, JITFunction)):  # or an interpreted one
        with _current(device):
            kernel[(num_programs,)](*arguments, *constants, num_warps=num_warps)
        return
    key = id(kernel), device.index, num_warps, constants, *[tensor.dtype for tensor in typed]
    with _current(device):
        compiled = _compiled.get(key)
        if compiled is None:
            _compiled[key] = kernel[(num_programs,)](*arguments, *constants, num_warps=num_warps)
        else:
            compiled[(num_programs, 1, 1)](*arguments, *constants)


def _current(device: torch.device):
    """Triton launches on the current GPU, which need not be that of the tensors."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
