"""The bridge from a detection head to its losses; :mod:`alrp.modeling.head_losses` has them all."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import NamedTuple
import torch
import torch.distributed as dist
from torch import Tensor, nn

from detectron2.utils.events import get_event_storage, has_event_storage

from ..losses import ALRPLossOutput, SelfBalance, class_targets
from ..losses.inputs import check_delta
from .box_losses import BoxLoss, IterationBalance

_LOGGER = logging.getLogger(__name__)

# Reading a scalar from a GPU stalls it, and writers look at this period only.
_EVENT_PERIOD = 20


class ClassificationLoss(NamedTuple):
    """What the classification half of a head's losses gives.

    Attributes:
        loss: scalar to train with.
        value: scalar that :class:`IterationBalance` gives to the box loss.
        scalars: to log, by name.
        ranked: all that :func:`alrp_loss` returns, of which ``loc`` may be the box loss.
    """

    loss: Tensor
    value: Tensor
    scalars: dict[str, Tensor]
    ranked: ALRPLossOutput | None = None


class HeadLosses(nn.Module, ABC):
    """Classification and box losses of one head.

    A subclass brings the classification loss; the box loss and its balance are a choice.

    Args:
        num_classes: K foreground classes; 1 for a region proposal head.
        box_loss: loss of the boxes of positives.
        self_balance: weight of the box loss: an :class:`IterationBalance`, a constant > 0, or None
            for 1. A ``SelfBalance`` balances the two parts of aLRP only.
        prefix: of the names of logged scalars.

    Attributes:
        published_box_loss: ``MODEL.ALRP.BOX_LOSS`` that the classification loss is published with.

    Raises:
        ValueError: if the parts do not fit together.
    """

    published_box_loss: str
    # Whether the classification loss reads decoded boxes, whatever the box loss does.
    _ranks_by_boxes = False

    def __init__(
        self,
        *,
        num_classes: int,
        box_loss: BoxLoss | None,
        self_balance: nn.Module | float | None = None,
        prefix: str = "alrp",
    ) -> None:
        super().__init__()
        _check_balance(self_balance, box_loss)
        self.num_classes = num_classes
        self.box_loss = box_loss
        self.self_balance = self_balance
        self.prefix = prefix
        self._values_checked = self._warned = False

    def __prepare_scriptable__(self):
        """Called by ``torch.jit.script``, also for a model that holds this module."""
        raise NotImplementedError(
            "detectors with ranking losses cannot be scripted, because their losses and matchers "
            "read values as Python numbers; export them by tracing: tools/export_model.py."
        )

    @property
    def compares_boxes(self) -> bool:
        """Whether :meth:`forward` takes decoded boxes; else what the head predicts."""
        return self._ranks_by_boxes or self.box_loss is None or self.box_loss.compares_boxes

    @property
    def compares_deltas(self) -> bool:
        """Whether the box loss compares what the head predicts, such as deltas."""
        return self.box_loss is not None and not self.box_loss.compares_boxes

    def forward(
        self,
        pred_logits: Tensor,
        gt_classes: Tensor,
        predicted: Tensor,
        expected: Tensor,
        *,
        deltas: tuple[Tensor, Tensor] | None = None,
        rows: Tensor | None = None,
        num_images: int = 1,
    ) -> dict[str, Tensor]:
        """Losses of Q candidates, P of them positive.

        The p-th positive of the flattened (Q, K) targets is the p-th row with a foreground class,
        because a row holds at most one; so boxes are passed in row order.

        Args:
            pred_logits: (Q, K).
            gt_classes: (Q,) int64; 0..K-1 foreground, K background, -1 ignored.
            predicted: (P, 4) of the rows with a foreground class: boxes XYXY in any frame if
                ``compares_boxes``, else what the head predicts, such as deltas.
            expected: (P, 4) the ground truth in the same form.
            deltas: what the head predicts and the ground truth in the same form, (P, 4) each;
                needed if both ``compares_boxes`` and ``compares_deltas``.
            rows: (P,) int64, what :meth:`positive_rows` returns, if the caller has it already;
                finding the rows again would wait for a GPU.
            num_images: that the candidates are of; only :class:`FocalHeadLosses` reads it.

        Returns:
            dict[str, Tensor]: scalars "loss_cls" and "loss_box_reg".

        Raises:
            ValueError: on a wrong shape or dtype, or a class out of range. Classes are looked at in
                every call on a CPU, and in the first call on a GPU, which this would stall.
        """
        self._check_inputs(pred_logits, gt_classes, predicted, expected, deltas)
        classification = self._classify(pred_logits, gt_classes, predicted, expected, num_images)
        if self.box_loss is None:
            box_loss = classification.ranked.loc
        else:
            pair = deltas if self.compares_boxes and self.compares_deltas else (predicted, expected)
            scores = None
            if self.box_loss.reads_scores:
                rows = self.positive_rows(gt_classes) if rows is None else rows
                scores = best_scores(pred_logits[rows])
            box_loss = self.box_loss(*pair, scores, group=self._group())
        weight = self._weight(classification, box_loss)
        self._log(len(expected), self_balance_weight=weight, **classification.scalars)
        if weight is not None:
            box_loss = weight * box_loss
        return {"loss_cls": classification.loss, "loss_box_reg": box_loss}

    @abstractmethod
    def _classify(
        self,
        pred_logits: Tensor,
        gt_classes: Tensor,
        predicted: Tensor,
        expected: Tensor,
        num_images: int,
    ) -> ClassificationLoss:
        """The classification loss, from the arguments of :meth:`forward`."""

    def positive_rows(self, gt_classes: Tensor) -> Tensor:
        """(P,) indices of the rows with a foreground class, whose boxes :meth:`forward` takes."""
        return self._is_positive(gt_classes).nonzero().squeeze(1)

    def _is_positive(self, gt_classes: Tensor) -> Tensor:
        return (gt_classes >= 0) & (gt_classes < self.num_classes)

    def _targets(self, gt_classes: Tensor) -> Tensor:
        """(Q * K,) int8, see :func:`class_targets`."""
        return class_targets(gt_classes, self.num_classes)

    def _group(self) -> dist.ProcessGroup | None:
        """The processes whose mini-batches count as one; None for this process alone."""
        return None

    def _weight(self, classification: ClassificationLoss, box_loss: Tensor):
        """Weight of the box loss; None for 1."""
        if isinstance(self.self_balance, SelfBalance):
            return self.self_balance(classification.ranked)
        if isinstance(self.self_balance, IterationBalance):
            return self.self_balance(classification.value, box_loss)
        return self.self_balance

    def _log(self, num_positives: int, **scalars) -> None:
        # Without positives the loss is 0 by definition, which would read as perfect.
        # Without gradients it is no training step, and no scalar of the training.
        if num_positives == 0 or not has_event_storage() or not torch.is_grad_enabled():
            return
        storage = get_event_storage()
        if (storage.iter + 1) % _EVENT_PERIOD:
            return
        for name, value in scalars.items():
            if value is not None:
                value = value.detach() if isinstance(value, Tensor) else value
                storage.put_scalar(f"{self.prefix}/{name}", value, smoothing_hint=False)

    def _check_inputs(self, pred_logits, gt_classes, predicted, expected, deltas) -> None:
        _check_logits(pred_logits, self.num_classes)
        if gt_classes.shape != pred_logits.shape[:1] or gt_classes.is_floating_point():
            raise ValueError(
                f"gt_classes must be ({len(pred_logits)},) integers, one per row of pred_logits, "
                f"but are {gt_classes.dtype} of shape {tuple(gt_classes.shape)}."
            )
        if self.compares_boxes and self.compares_deltas and deltas is None:
            raise ValueError(
                f"{type(self).__name__} with {type(self.box_loss).__name__} compares deltas and "
                "reads decoded boxes: pass deltas=(predicted, expected) as well."
            )
        for first, second in ((predicted, expected), deltas or (expected, expected)):
            if first.shape != second.shape or first.dim() != 2 or first.shape[1] != 4:
                raise ValueError(
                    "predicted and expected must both be (P, 4), one row per positive, but are "
                    f"{tuple(first.shape)} and {tuple(second.shape)}."
                )
        if gt_classes.device.type == "cpu" or not self._values_checked:
            self._check_classes(gt_classes)
            self._values_checked = True

    def _check_classes(self, gt_classes: Tensor) -> None:
        wrong = gt_classes[(gt_classes < -1) | (gt_classes > self.num_classes)]
        if len(wrong):
            raise ValueError(
                f"gt_classes must be 0 to {self.num_classes - 1} for a foreground class, "
                f"{self.num_classes} for the background or -1 for an ignored row, but hold "
                f"{wrong[0].item()}; num_classes is {self.num_classes}."
            )
        no_background = not (gt_classes == self.num_classes).any()
        if no_background and not self._warned and (gt_classes == -1).any():
            self._warned = True
            _LOGGER.warning(
                f"No row is background (class {self.num_classes}), but some are ignored (-1), so "
                "there is nothing to rank positives above. If -1 is meant as background, pass "
                f"{self.num_classes} instead."
            )


@torch.no_grad()
def best_scores(pred_logits: Tensor) -> Tensor:
    """(Q,) float32, the greatest score of each row of (Q, K) logits; without gradient."""
    return pred_logits.float().sigmoid().amax(1)


def _check_logits(pred_logits: Tensor, num_classes: int) -> None:
    if pred_logits.dim() == 2 and pred_logits.shape[1] == num_classes:
        return
    message = (
        f"pred_logits must be (Q, {num_classes}), one column per foreground class, but have shape "
        f"{tuple(pred_logits.shape)}"
    )
    if pred_logits.dim() == 2 and pred_logits.shape[1] == num_classes + 1:
        message += (
            "; a background column has no place in a ranking: let the head predict "
            f"{num_classes} sigmoid logits, without one"
        )
    raise ValueError(f"{message}.")


def _check_balance(balance: nn.Module | float | None, box_loss: BoxLoss | None) -> None:
    if isinstance(balance, SelfBalance) and box_loss is not None:
        raise ValueError(
            "SelfBalance balances the two parts of aLRP Loss, but the box loss is "
            f"{type(box_loss).__name__}; pass self_balance=IterationBalance() or a number."
        )
    if isinstance(balance, IterationBalance) and box_loss is None:
        raise ValueError(
            "IterationBalance needs a box loss of its own; for the localisation part of aLRP pass "
            "self_balance=SelfBalance(period=1)."
        )
    if isinstance(balance, (int, float)) and not 0 < balance < float("inf"):
        raise ValueError(f"self_balance must be a finite number > 0, but is {balance}.")


class RankingHeadLosses(HeadLosses):
    """Losses of a head whose rows of one call are all ranked together.

    Args:
        delta: half width of the smoothed step, in logit units, 1e-30 to 1e30; None for
            ``published_delta``.
        global_ranking: rank the mini-batches of all processes as one, instead of each its own.
        kwargs: of :class:`HeadLosses`.

    Attributes:
        published_delta: that the classification loss is published with.

    Raises:
        ValueError: if ``delta`` is out of range, or the parts do not fit together.
    """

    published_delta = 1.0
    # Whether a delta of 0 is the hard step.
    _has_hard_step = False

    def __init__(
        self, *, delta: float | None = None, global_ranking: bool = False, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.delta = self.published_delta if delta is None else delta
        if self.delta != 0 or not self._has_hard_step:
            check_delta(self.delta)
        self.global_ranking = global_ranking

    def _group(self) -> dist.ProcessGroup | None:
        return ranking_group(self.global_ranking)


def ranking_group(global_ranking: bool) -> dist.ProcessGroup | None:
    """The processes whose mini-batches count as one; None for this process alone.

    A loss without gradients, as in validation, is of this process alone: the processes may have
    different numbers of validation batches, and would wait for each other for ever.
    """
    together = global_ranking and dist.is_available() and dist.is_initialized()
    return dist.group.WORLD if together and torch.is_grad_enabled() else None


def keep_checkpoint_names(owner: nn.Module) -> None:
    """Keep the names of checkpoints, in which ``owner.head_losses`` is called ranking_losses.

    So checkpoints of all versions load in all versions.
    """
    owner._register_state_dict_hook(_name_as_saved)
    owner._register_load_state_dict_pre_hook(_name_as_built)


def _name_as_saved(owner: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
    _rename(state_dict, f"{prefix}head_losses.", f"{prefix}ranking_losses.")


def _name_as_built(state_dict: dict[str, Tensor], prefix: str, *args) -> None:
    _rename(state_dict, f"{prefix}ranking_losses.", f"{prefix}head_losses.")


def _rename(state_dict: dict[str, Tensor], old_prefix: str, new_prefix: str) -> None:
    for name in [name for name in state_dict if name.startswith(old_prefix)]:
        state_dict[new_prefix + name[len(old_prefix) :]] = state_dict.pop(name)
