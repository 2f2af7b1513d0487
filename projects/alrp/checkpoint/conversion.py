"""What a conversion of a state dict gives, and how it is judged. Pure functions."""

from __future__ import annotations

import re
from typing import Callable, Mapping, NamedTuple
import torch
from torch import Tensor

from .architecture import Architecture

# Of a backbone, in Detectron2's names.
BACKBONE_PREFIX = "backbone.bottom_up."
# Of a timm backbone, below which it has timm's own names.
TIMM_PREFIX = f"{BACKBONE_PREFIX}net."
# State of models of this project beside their weights; other frameworks do not save it.
OWN_STATE = re.compile(
    r"\bself_balance\.(weight|sum_cls|sum_loc|count)$|^shown\.(thresholds|calibration)$"
)
# In the backbone of a detector but not in that of a classifier: offsets of deformable convolution,
# and counters. Both start at 0.
STARTS_AT_ZERO = re.compile(r"\.conv2_offset\.|\.num_batches_tracked$")
# What a checkpoint of a detector may have or not.
_OPTIONAL = re.compile(rf"{OWN_STATE.pattern}|\.num_batches_tracked$")


class Conversion(NamedTuple):
    """Outcome of a conversion.

    Attributes:
        architecture: what the state dict is of; None for a backbone alone.
        state: tensors under their new names, in the old order.
        names: old name of every tensor used -> its new name.
        dropped: old names that have no place in the other framework, by rule.
        leftovers: old names that no rule covers.
        missing: old names that the architecture needs and the state dict has not.
    """

    architecture: Architecture | None
    state: dict[str, Tensor]
    names: dict[str, str]
    dropped: list[str]
    leftovers: list[str]
    missing: list[str]


def rename(
    state: Mapping[str, Tensor],
    new_name: Callable[[str], str | None],
    dropped: re.Pattern,
    architecture: Architecture | None = None,
) -> Conversion:
    """The tensors of a state dict under their new names; the tensors are not copied.

    Args:
        state: old names to tensors.
        new_name: of an old name; None if no rule covers it.
        dropped: pattern of the names without a rule that are dropped; all others are left over.
        architecture: for the outcome.

    Returns:
        Conversion: with ``missing`` empty.
    """
    result = Conversion(architecture, {}, {}, [], [], [])
    for old, tensor in state.items():
        new = new_name(old)
        if new is not None:
            result.names[old] = new
            result.state[new] = tensor
        else:
            (result.dropped if dropped.search(old) else result.leftovers).append(old)
    return result


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """The state dict with a prefix taken off, if all names have it; else as it is."""
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name[len(prefix) :]: tensor for name, tensor in state.items()}


def timm_backbone(
    state: Mapping[str, Tensor], model: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """The part of a state dict in timm's names that a detector on that timm model has.

    Args:
        state: names to tensors, such as timm saves or downloads them.
        model: state dict of a detector. Of the timm model it has what its levels need.

    Returns:
        dict | None: under the names of the detector; None if it is not built on timm, or the state
        dict is of a whole detector.
    """
    has_timm = any(name.startswith(TIMM_PREFIX) for name in model)
    if not has_timm or any(name.startswith(BACKBONE_PREFIX) for name in state):
        return None
    renamed = {TIMM_PREFIX + name: tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in renamed.items() if name in model}


def non_finite_tensor(state: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or Inf; None if there is none."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def conversion_report(conversion: Conversion, verbose: bool = False) -> str:
    """What became of every tensor: counts and all that was not used; every name if ``verbose``."""
    lines = [f"{len(conversion.names)} tensors used"]
    if verbose:
        lines += [f"  {old} -> {new}" for old, new in conversion.names.items()]
    rest = {
        "dropped, without a place in the other framework": conversion.dropped,
        "left over, covered by no rule": conversion.leftovers,
        "missing, needed by the model": conversion.missing,
    }
    for what, names in rest.items():
        lines.append(f"{len(names)} {what}{':' if names else ''}")
        lines += [f"  {name}" for name in names]
    return "\n".join(lines)


def shape_differences(
    state: Mapping[str, Tensor], model: Mapping[str, Tensor], prefix: str = ""
) -> list[str]:
    """How a state dict differs from that of the model that is to load it.

    Args:
        state: Detectron2's names to tensors.
        model: state dict of a model, of any device.
        prefix: of a backbone alone; the model may have more beside it.

    Returns:
        list[str]: one text per tensor; empty if the model can load the state dict.
    """
    optional = STARTS_AT_ZERO if prefix else _OPTIONAL
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differences = []
    for name, tensor in model.items():
        shape = found.pop(name, None)
        if shape is None and name.startswith(prefix) and not optional.search(name):
            differences.append(f"{name} is missing")
        elif shape is not None and shape != tuple(tensor.shape):
            differences.append(f"{name} is {shape} and should be {tuple(tensor.shape)}")
    unknown = [name for name in found if not _OPTIONAL.search(name)]
    return differences + [f"{name} has no place in the model" for name in unknown]
