"""Checkpoints that are checked when loaded."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any, Sequence
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from ..files import replacing
from ..losses import SelfBalance
from .conversion import (
    BACKBONE_PREFIX,
    STARTS_AT_ZERO,
    non_finite_tensor,
    timm_backbone,
    without_prefix,
)
from .pixels import other_pixels
from .published import has_published_names
from .resnet import is_torchvision_resnet, torchvision_to_detectron2
from .serialization import read_checkpoint, read_zoo_pickle, split_checkpoint, write_checkpoint
from .training_state import resumable_state

_STEM = "stem.conv1.weight"
_TAG = "last_checkpoint"
# Sorted by name, they are in the order in which they were written.
_NUMBERED = re.compile(r"model_(\d{7}|final)\.pth")


class CheckedCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which refuses what it would only warn of.

    It also loads torchvision's ResNets and ResNeXts, by ``torchvision://`` name or from a file,
    and files of timm into the backbone.

    Args:
        model, save_dir, checkpointables: of :class:`DetectionCheckpointer`; a "trainer" is resumed
            with the settings of the config.
        complete: whether a checkpoint must hold every tensor of the model in its shape, as for
            evaluation and resuming. Otherwise (a backbone or another task to start training
            from) at least one parameter must fit.
        class_names: of the data, by class index. They are saved with the model, and a complete
            checkpoint with other names is refused. If None, they are not known.
    """

    def __init__(
        self,
        model,
        save_dir="",
        *,
        complete: bool = True,
        class_names: Sequence[str] | None = None,
        **checkpointables,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete
        self.class_names = None if class_names is None else list(class_names)
        self._resumes = False

    def save(self, name: str, **kwargs: Any) -> None:
        """As the parent; the file appears whole or not at all, with the names of the classes.

        Raises:
            UserError: if it cannot be written, as on a full disk.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content.update((key, part.state_dict()) for key, part in self.checkpointables.items())
        if self.class_names is not None:
            content["class_names"] = self.class_names
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        write_checkpoint({**content, **kwargs}, path)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As the parent, but a kill in between leaves the old tag instead of an empty one."""
        with replacing(os.path.join(self.save_dir, _TAG)) as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from, see :func:`last_checkpoint`."""
        return last_checkpoint(self.save_dir) is not None

    def get_checkpoint_file(self) -> str:
        """Path of the checkpoint to resume from; "" if there is none."""
        path = last_checkpoint(self.save_dir)
        if path and not os.path.exists(os.path.join(self.save_dir, _TAG)):
            self.logger.warning(f"{_TAG} is missing: going on from the latest checkpoint, {path}.")
        return path or ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the parent; a checkpoint resumed from must be complete.

        Weights of another training bring their self-balance weight, but not its unfinished period.
        """
        self._resumes = resume and self.has_checkpoint()
        self.complete = self.complete or self._resumes
        extra = super().resume_or_load(path, resume=self._resumes)
        if not self._resumes:
            if not path:
                self._warn_of_frozen_parameters()
            for module in self.model.modules():
                if isinstance(module, SelfBalance):
                    module.reset()
        return extra

    def _warn_of_frozen_parameters(self) -> None:
        """Parameters that no weights are loaded into, and no training changes."""
        frozen = [n for n, p in self.model.named_parameters() if not p.requires_grad]
        if frozen:
            self.logger.warning(
                f"MODEL.WEIGHTS is empty, and {len(frozen)} parameters are frozen, such as "
                f"{frozen[0]}: they stay random, unless the model brings trained ones itself. Set "
                "MODEL.BACKBONE.FREEZE_AT 0 (a LazyConfig: freeze_at of the backbone), or name "
                "weights to start from."
            )

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
        fetch_checkpoint(path)
        wanted = other_pixels(self.model, path)
        if wanted:
            self.logger.warning(
                f"{path} was trained on other pixels than the model gives it, which costs "
                f"accuracy: set {wanted}."
            )
        try:
            return super().load(path, *args, **kwargs)
        except UserError:
            raise
        except (AssertionError, OSError, ValueError) as error:
            raise UserError(_wrong_path(path, error)) from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it behind after an error

    def _load_file(self, filename: str) -> dict[str, Any]:
        """As the parent, but nothing except tensors, arrays and plain Python is read."""
        if filename.endswith(".pkl"):
            checkpoint = read_zoo_pickle(filename)
        else:
            checkpoint = self._read(filename)
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
        if self._resumes and "trainer" in self.checkpointables:
            current = self.checkpointables["trainer"].state_dict()
            checkpoint["trainer"] = resumable_state(checkpoint.get("trainer"), current, filename)
        self._check_class_names(checkpoint.get("class_names"), filename)
        return self._from_torchvision(checkpoint)

    def _read(self, filename: str) -> dict[str, Any]:
        try:
            return read_checkpoint(filename)
        except UserError as error:
            others = [n for n in _written(self.save_dir) if n != os.path.basename(filename)]
            if not self._resumes or not others:
                raise
            raise UserError(
                f"{error} To go on from an earlier checkpoint, write its name into "
                f"{os.path.join(self.save_dir, _TAG)}, such as {others[-1]}."
            ) from error

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
            return self._from_timm(checkpoint, state, names)
        stages = {n[len(prefix) :].split(".")[0] for n in names if n.startswith(prefix)}
        conversion = torchvision_to_detectron2(state)
        model = {n: state[n] for n in conversion.leftovers}
        model.update(
            {prefix + n: t for n, t in conversion.state.items() if n.split(".")[0] in stages}
        )
        return {"model": model, "__author__": "torchvision", "backbone_prefix": prefix}

    @staticmethod
    def _from_timm(checkpoint: dict[str, Any], state, names) -> dict[str, Any]:
        """A checkpoint in timm's names under those of a model on timm; others as they are."""
        model = timm_backbone(state, names)
        if model is None:
            return checkpoint
        return {"model": model, "__author__": "timm", "backbone_prefix": BACKBONE_PREFIX}

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
                f"{_some('unknown', unexpected)}. Set MODEL.WEIGHTS to weights of the same network "
                "(MODEL.RESNETS or MODEL.TIMM.MODEL_NAME), for example torchvision://resnet50."
            )

    def _check_class_names(self, saved: Any, filename: str) -> None:
        """Refuse, or warn of, weights whose outputs stand for other classes than the data's."""
        present = self.class_names
        if not isinstance(saved, list) or present is None or saved == present:
            return
        if len(saved) != len(present) and self.complete:
            return  # the shapes do not fit, which says more
        message = (
            f"checkpoint {filename} was trained on the classes {', '.join(map(str, saved))}, in "
            f"this order, but the data has {', '.join(present)}"
        )
        if self.complete:
            raise UserError(
                f"{message}: results would be of the wrong classes. Use the datasets it was "
                "trained for, with the same 'categories' and ids."
            )
        if set(saved) == set(present):
            self.logger.warning(f"{message}: the classifier starts with its classes exchanged.")


def fetch_checkpoint(path: str) -> None:
    """Download what an address stands for, to where Detectron2 finds it; a plain path is left.

    Raises:
        UserError: if there is nothing at the address.
    """
    if "://" not in path:
        return
    try:
        PathManager.get_local_path(path.split("?")[0])
    except UserError:
        raise
    except Exception as error:  # each kind of address raises its own
        raise UserError(_wrong_path(path, error)) from error


def _wrong_path(path: str, error: Exception) -> str:
    return f"checkpoint {path}: {str(error).strip().rstrip('.!')}. Correct MODEL.WEIGHTS."


def last_checkpoint(folder: str) -> str | None:
    """Path of the checkpoint that a run in a folder is resumed from; None if there is none.

    It is named in the file ``last_checkpoint``. Where that is missing, the run goes on from the
    latest ``model_NNNNNNN.pth`` or ``model_final.pth``, which would be overwritten otherwise.

    Raises:
        UserError: if ``last_checkpoint`` cannot be read or names a file that is not there.
    """
    tag = os.path.join(folder, _TAG)
    files = _written(folder)
    advice = "write the name of a checkpoint into it, or remove it to go on from the latest one" + (
        f", {files[-1]}." if files else "."
    )
    if not os.path.exists(tag):
        if not files:
            return None
        return os.path.join(folder, files[-1])
    try:
        with open(tag, encoding="utf-8") as file:
            name = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{tag} cannot be read ({error}); {advice}") from error
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise UserError(f"{tag} names the checkpoint {name!r}, which is no file; {advice}")
    return path


def _written(folder: str) -> list[str]:
    """Names of the checkpoints of a training in a folder, the latest at the end."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(filter(_NUMBERED.fullmatch, names))


def _some(what: str, items: list[str]) -> str:
    """Like "12 missing (a, b, ...)"."""
    if not items:
        return f"0 {what}"
    return f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
