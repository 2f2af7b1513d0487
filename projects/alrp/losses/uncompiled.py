"""Keeps ``torch.compile`` out of the losses."""

from __future__ import annotations

from typing import Callable, TypeVar
import torch

_Function = TypeVar("_Function", bound=Callable)

_REASON = (
    "alrp: a ranking loss reads values as Python numbers, which no graph can hold; compile without "
    "fullgraph=True, or compile the network and call the loss outside of what is compiled"
)


def uncompiled(function: _Function) -> _Function:
    """A function that runs as it is, also when it is called inside of what is compiled.

    What comes before and after it is compiled. With ``fullgraph=True`` the compiler refuses the
    call, and says why (from PyTorch 2.7 on, whose compiler takes a reason).
    """
    reason = {"reason": _REASON} if torch.__version__ >= "2.7" else {}  # compared as versions
    return torch.compiler.disable(function, **reason)
