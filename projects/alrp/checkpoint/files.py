"""Checkpoint files of any origin: read without running code of theirs, written whole or not."""

from __future__ import annotations

import os
import re
from typing import Any
import torch
from torch import Tensor

from ..errors import UserError
from ..files import replacing

# At the start of PyTorch's old format, as pickled.
_MAGIC_NUMBER = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")


def read_checkpoint(path: str) -> dict[str, Any]:
    """Content of a file of ``torch.save``, on the CPU; only tensors and plain Python are read.

    Raises:
        UserError: if it is missing, unreadable, no dictionary, or holds objects of other classes.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file; name the checkpoint to convert.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load and pickle document no common exception
        raise UserError(explain_unreadable(path, error)) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a dictionary, but the file holds a {type(content).__name__}; name a "
            "checkpoint of MMDetection, torchvision or Detectron2."
        )
    return content


def split_checkpoint(content: dict[str, Any], path: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in the content of a file, and the names of what lies beside it.

    Args:
        content: of :func:`read_checkpoint`. The weights may be the whole of it, or its entry
            "state_dict" (MMDetection) or "model" (Detectron2).
        path: of the file, for the messages.

    Raises:
        UserError: if there are no weights.
    """
    entry = next((key for key in ("state_dict", "model") if key in content), None)
    state = content if entry is None else content[entry]
    if not isinstance(state, dict) or not state or not _all_tensors(state):
        raise UserError(
            f"{path}: expected weights, as the entry 'state_dict' or 'model' or as the whole file, "
            f"but it holds {', '.join(map(repr, list(content)[:6])) or 'nothing'}; an optimizer's "
            "state or a log is no checkpoint of a model."
        )
    return dict(state), [] if entry is None else [key for key in content if key != entry]


def write_checkpoint(content: dict[str, Any], path: str) -> None:
    """Save ``content``; a file of that name is replaced at the end, or stays as it is.

    Args:
        content: for ``torch.save``.
        path: of a file, or of a link to one, which then stays a link.

    Raises:
        UserError: if the file cannot be written, or something else has that name.
    """
    with replacing(path) as file:
        torch.save(content, file)


def _all_tensors(state: dict) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())


def explain_unreadable(path: str, error: Exception) -> str:
    """What is wrong with a file that ``torch.load(path, weights_only=True)`` refused, and the cure.

    Args:
        path: of the file.
        error: what was raised.
    """
    classes = _foreign_classes(path, error)
    if not classes:
        return (
            f"checkpoint {path} cannot be read ({_reason(path, error)}); it may be truncated or no "
            "PyTorch checkpoint. Copy or download it again and compare its size."
        )
    return (
        f"checkpoint {path} holds objects of the classes {', '.join(classes)} beside its tensors. "
        "To load them is to run code that the file chooses, so it was not read. If you trust it, "
        "save the tensors alone, where it was made, and use NEW.pth instead:\n"
        f"  python -c \"import torch; c = torch.load({path!r}, map_location='cpu', "
        "weights_only=False); torch.save({'state_dict': c['state_dict']}, 'NEW.pth')\""
    )


def _foreign_classes(path: str, error: Exception) -> list[str]:
    """Classes that were refused; of a file in PyTorch's old format only the first."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # an old PyTorch, the old format, or a file that is damaged
        named = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+\.\w+)", str(error))
    if named is None or _is_cut_off_in(path, named[1].rpartition(".")[2]):
        return []
    return [named[1]]


def _is_cut_off_in(path: str, name: str) -> bool:
    """Whether the file ends within a name, of which PyTorch then reports all but the last byte."""
    length = min(len(name) + 1, os.path.getsize(path))
    with open(path, "rb") as file:
        file.seek(-length, os.SEEK_END)
        return name.encode() in file.read()


def _reason(path: str, error: Exception) -> str:
    """What kind of file it is, or what an error says without PyTorch's advice to load unsafely."""
    with open(path, "rb") as file:
        head = file.read(256)
    if not head:
        return "it is empty"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "it is a text file"
    if head.startswith(b"\x80") and _MAGIC_NUMBER not in head:
        return "it is a plain pickle, not written by torch.save"
    text = str(error) or type(error).__name__
    if "weights_only" not in text:
        return text.splitlines()[0].split(". ")[0]
    detail = re.search(r"WeightsUnpickler error:\s*(.*)", text)
    return detail[1].split(". ")[0] if detail else "no plain tensors"
