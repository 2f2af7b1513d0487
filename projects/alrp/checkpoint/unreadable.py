"""What is wrong with a file that is not read as a checkpoint, and the way out."""

from __future__ import annotations

import json
import os
import re
import shlex
import tarfile
import zipfile
import torch

# Within the first bytes of PyTorch's old format, as pickled.
_MAGIC_NUMBER = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
_DAMAGED = "It may be truncated or no checkpoint: copy or download it again and compare its size."
_UNPACK = "Unpack it and name the checkpoint in it."

# Programs that keep the tensors of a file and nothing else. PATH stands for the file.
_KEEP_TENSORS = (
    'import torch; c = torch.load(PATH, map_location="cpu", weights_only=False); '
    'keys = ("state_dict", "model", "model_state_dict", "model_state", "ema", "net"); '
    "c = next((c[k] for k in keys if c.get(k) is not None), c) if isinstance(c, dict) else c; "
    'c = c.state_dict() if hasattr(c, "state_dict") else c; '
    'torch.save({"model": {k: v for k, v in c.items() if torch.is_tensor(v)}}, "NEW.pth")'
)
_KEEP_SCRIPTED_TENSORS = (
    'import torch; c = torch.jit.load(PATH, map_location="cpu"); '
    'torch.save({"model": dict(c.state_dict())}, "NEW.pth")'
)
_KEEP_ARRAYS = (
    'import numpy, pickle; c = pickle.load(open(PATH, "rb"), encoding="latin1"); '
    'a = c.get("__author__", "Caffe2"); c = c.get("model", c.get("blobs", c)); '
    'c = {k: numpy.asarray(v) for k, v in c.items() if hasattr(v, "shape")}; '
    'c = {"model": c, "__author__": a, "matching_heuristics": True}; '
    'pickle.dump(c, open("NEW.pkl", "wb"))'
)


def is_of_torch(path: str) -> bool:
    """Whether a file starts as one of the formats of ``torch.save`` does."""
    head = _head(path)
    return head.startswith(b"PK\x03\x04") or _MAGIC_NUMBER in head[:32]


def explain_unreadable(path: str, error: Exception) -> str:
    """What is wrong with a file that a reader of data refused, and the way out.

    Args:
        path: of the file.
        error: what the reader raised.
    """
    kind, advice = _kind(path)
    if kind is None:
        classes = _foreign_classes(path, error)
        if classes:
            return explain_classes(path, classes)
        kind, advice = _reason(error), _DAMAGED
    return f"checkpoint {path} cannot be read ({kind}). {advice}"


def explain_classes(path: str, classes: list[str]) -> str:
    """Why a file with objects of these classes is not read, and a command that takes them out."""
    program = _KEEP_TENSORS if is_of_torch(path) else _KEEP_ARRAYS
    what = f"objects of the classes {', '.join(classes[:5])}{', ...' if classes[5:] else ''}"
    if any(name.startswith("torch.nn.") for name in classes):
        what = f"a whole model, as torch.save(model) writes it, with {what}"
    return (
        f"checkpoint {path} holds {what} beside its tensors. "
        "To load them is to run code that the file chooses, so it was not read. If you trust it, "
        f"save the tensors alone, where it was made, and use {_new_file(program)} instead:\n"
        f"  {_command(program, path)}"
    )


def _command(program: str, path: str) -> str:
    # As JSON, a path is a string of Python in double quotes.
    return f"python -c {shlex.quote(program.replace('PATH', json.dumps(path, ensure_ascii=False)))}"


def _new_file(program: str) -> str:
    return re.search(r"NEW\.\w+", program)[0]


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(256)


def _kind(path: str) -> tuple[str | None, str]:
    """What a file is that is no checkpoint, as its first bytes tell, and what to do with it."""
    head = _head(path)
    if not head:
        return "it is empty", _DAMAGED
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself", "Run git lfs pull."
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "it is a text file", _DAMAGED
    if head.startswith(b"\x1f\x8b") or tarfile.is_tarfile(path):
        return "it is a compressed file or a tar archive", _UNPACK
    if zipfile.is_zipfile(path):
        return _kind_of_zip(path)
    if head.startswith(b"\x80") and not is_of_torch(path) and not path.endswith(".pkl"):
        return (
            "it is a plain pickle, not written by torch.save",
            "Weights of Detectron2's zoo must keep their name, which ends with .pkl.",
        )
    return None, ""


def _kind_of_zip(path: str) -> tuple[str | None, str]:
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        command = _command(_KEEP_SCRIPTED_TENSORS, path)
        return (
            "it is a TorchScript archive, which holds code",
            f"If you trust it, save its tensors alone and use NEW.pth instead:\n  {command}",
        )
    if "data.pkl" not in names:
        return "it is a zip archive of other files", _UNPACK
    return None, ""


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


def _reason(error: Exception) -> str:
    """The first sentence of an error, without PyTorch's advice to load unsafely."""
    text = str(error) or type(error).__name__
    if "weights_only" not in text:
        return text.splitlines()[0].split(". ")[0]
    detail = re.search(r"WeightsUnpickler error:\s*(.*)", text)
    return detail[1].split(". ")[0] if detail else "no plain tensors"
