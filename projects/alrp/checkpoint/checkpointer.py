"""Checkpoints that are checked when loaded."""

from __future__ import annotations

import os
import shlex
from typing import Any
import torch

from detectron2.checkpoint import DetectionCheckpointer

from ..errors import UserError
from ..files import replacing
from ..losses import SelfBalance
from .conversion import STARTS_AT_ZERO, non_finite_tensor, without_prefix
from .files import read_checkpoint, read_zoo_pickle, split_checkpoint
from .published import has_published_names
from .resnet import is_torchvision_resnet, torchvision_to_detectron2

_STEM = "stem.conv1.weight"


class CheckedCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which refuses what it would only warn of.

    It also loads torchvision's ResNets and ResNeXts, by ``torchvision://`` name or from a file,
    into the backbone.

    Args:
        model, save_dir, checkpointables: of :class:`DetectionCheckpointer`.
        complete: whether a checkpoint must hold every tensor of the model in its shape, as for
            evaluation and resuming. Otherwise (a backbone or another task to start training
            from) at least one parameter must fit.
    """

    def __init__(self, model, save_dir="", *, complete: bool = True, **checkpointables) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the parent; a checkpoint resumed from must be complete.

        Weights of another training bring their self-balance weight, but not its unfinished period.
        """
        resumed = resume and self.has_checkpoint()
        self.complete = self.complete or resumed
        extra = super().resume_or_load(path, resume=resume)
        if not resumed:
            for module in self.model.modules():
                if isinstance(module, SelfBalance):
                    module.reset()
        return extra

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """As the parent.

        Raises:
            UserError: if the file is missing, unreadable, of another model, or not finite.
        """
        if not path and self.complete:
            raise UserError(
                "no checkpoint: MODEL.WEIGHTS is empty, and random weights are no result; set "
                "MODEL.WEIGHTS to a file."
            )
        try:
            return super().load(path, *args, **kwargs)
        except (AssertionError, OSError) as error:
            raise UserError(
                f"checkpoint {path}: {error} Correct MODEL.WEIGHTS, or, with --resume, the name in "
                f"{os.path.join(self.save_dir, 'last_checkpoint')}."
            ) from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it behind after an error

    def _load_file(self, filename: str) -> dict[str, Any]:
        """As the parent, but nothing except tensors, arrays and plain Python is read."""
        if filename.endswith(".pkl"):
            checkpoint = read_zoo_pickle(filename)
        else:
            checkpoint = read_checkpoint(filename)
        state, beside = split_checkpoint(checkpoint, filename)
        if has_published_names(state):
            raise UserError(
                f"checkpoint {filename} has the names of MMDetection; convert it first: "
                f"python tools/convert_checkpoint.py {shlex.quote(filename)} OUT.pth"
            )
        checkpoint = {**{key: checkpoint[key] for key in beside}, "model": state}
        # Detectron2's ways to ask for a search of similar names.
        if filename.endswith(".pyth") or "matching_heuristics=True" in self._query():
            checkpoint["matching_heuristics"] = True
        return self._from_torchvision(checkpoint)

    def _query(self) -> str:
        """What stands behind the "?" of the path, which Detectron2 takes off."""
        return self._parsed_url_during_load.query if self._parsed_url_during_load else ""

    def _from_torchvision(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint of a torchvision ResNet under this model's names; others as they are.

        Stages that the model has not are left out; names without a rule stay and are reported.
        """
        state = without_prefix(checkpoint["model"], "module.")
        names = self.model.state_dict()
        prefix = next((n[: -len(_STEM)] for n in names if n.endswith(_STEM)), None)
        if prefix is None or not is_torchvision_resnet(state):
            return checkpoint
        stages = {n[len(prefix) :].split(".")[0] for n in names if n.startswith(prefix)}
        conversion = torchvision_to_detectron2(state)
        model = {n: state[n] for n in conversion.leftovers}
        model.update(
            {prefix + n: t for n, t in conversion.state.items() if n.split(".")[0] in stages}
        )
        return {"model": model, "__author__": "torchvision", "backbone_prefix": prefix}

    def _load_model(self, checkpoint: dict[str, Any]):
        # Checkpoints of Detectron2's own zoo hold NumPy arrays.
        state = {name: torch.as_tensor(value) for name, value in checkpoint["model"].items()}
        name = non_finite_tensor(state)
        if name is not None:
            raise UserError(
                f"checkpoint: tensor {name} holds NaN or Inf, so the training that wrote it "
                "had diverged; use an earlier checkpoint or a lower learning rate."
            )
        try:
            incompatible = super()._load_model(checkpoint)
        except ValueError as error:  # a module refuses its state, as SelfBalance does
            raise UserError(f"checkpoint: {error}") from error
        missing = list(incompatible.missing_keys)
        misshapen = [
            f"{name} {tuple(found)} instead of {tuple(expected)}"
            for name, found, expected in incompatible.incorrect_shapes
        ]
        unexpected = list(incompatible.unexpected_keys)
        parameters = {name for name, _ in self.model.named_parameters()}
        num_loaded = len(parameters.difference(missing))
        if num_loaded == 0 or (self.complete and (missing or misshapen)):
            raise UserError(
                "checkpoint does not fit the model: "
                f"{num_loaded} of its {len(parameters)} parameters fit, "
                f"{_some('missing', missing)}, {_some('of another shape', misshapen)}, "
                f"{_some('unknown', unexpected)}. Use the config the checkpoint was trained with "
                "(architecture, backbone, NUM_CLASSES)."
            )
        if "backbone_prefix" in checkpoint:
            self._check_backbone(checkpoint["backbone_prefix"], missing, misshapen, unexpected)
        return incompatible

    @staticmethod
    def _check_backbone(prefix: str, *differences: list[str]) -> None:
        """Weights of another depth would fit in part, and leave the rest random without a word."""
        missing, misshapen, unexpected = (
            [n for n in names if n.startswith(prefix) and not STARTS_AT_ZERO.search(n)]
            for names in differences
        )
        if missing or misshapen or unexpected:
            raise UserError(
                "checkpoint holds another backbone than the model: "
                f"{_some('missing', missing)}, {_some('of another shape', misshapen)}, "
                f"{_some('unknown', unexpected)}. Set MODEL.WEIGHTS to weights of the same depth, "
                "groups and width (MODEL.RESNETS), for example torchvision://resnet50."
            )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As the parent, but a kill in between leaves the old tag instead of an empty one."""
        with replacing(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())


def _some(what: str, items: list[str]) -> str:
    """Like "12 missing (a, b, ...)"."""
    if not items:
        return f"0 {what}"
    return f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
