"""The one bridge from detection heads to ranking losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
import torch
import torch.distributed as dist
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.utils.events import get_event_storage, has_event_storage

from ..errors import UserError
from ..losses import SelfBalance, alrp_loss, ap_loss, localization_error

# Reading a scalar from a GPU stalls it, and writers look at this period only.
_EVENT_PERIOD = 20


class HeadLosses(nn.Module, ABC):
    """Classification and box losses of one head.

    Attributes:
        compares_boxes: whether :meth:`forward` takes decoded boxes or encoded ones.

    Args:
        num_classes: K foreground classes; 1 for a region proposal head.
    """

    compares_boxes: bool

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def forward(
        self,
        pred_logits: Tensor,
        gt_classes: Tensor,
        predicted: Tensor,
        expected: Tensor,
        *,
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
            num_images: that the candidates are of; only :class:`FocalHeadLosses` reads it.

        Returns:
            dict[str, Tensor]: scalars "loss_cls" and "loss_box_reg".
        """

    def positive_rows(self, gt_classes: Tensor) -> Tensor:
        """(P,) indices of the rows with a foreground class, whose boxes :meth:`forward` takes."""
        return self._is_positive(gt_classes).nonzero().squeeze(1)

    def _is_positive(self, gt_classes: Tensor) -> Tensor:
        return (gt_classes >= 0) & (gt_classes < self.num_classes)

    def _targets(self, gt_classes: Tensor) -> Tensor:
        """(Q * K,) int8: 1 at the class of a positive row, -1 all over an ignored row, else 0.

        One-hot encoding would take eight times the memory.
        """
        ignored = (gt_classes == -1).to(torch.int8).neg()
        targets = ignored[:, None].repeat(1, self.num_classes)
        column = gt_classes.clamp(0, self.num_classes - 1)[:, None]
        return targets.scatter_(
            1, column, torch.where(self._is_positive(gt_classes), 1, ignored)[:, None]
        ).flatten()


class RankingHeadLosses(HeadLosses):
    """Losses of a head whose rows of one call are all ranked together.

    Args:
        delta: half width of the smoothed step, in logit units.
        prefix: of the names of logged scalars.
        global_ranking: rank the mini-batches of all processes as one, instead of each its own.
        kwargs: of :class:`HeadLosses`.
    """

    def __init__(
        self, *, delta: float = 1.0, prefix: str = "alrp", global_ranking: bool = False, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.delta = delta
        self.prefix = prefix
        self.global_ranking = global_ranking

    def _group(self) -> dist.ProcessGroup | None:
        """The processes to rank together; None for this one alone.

        A loss without gradients, as in validation, is ranked alone: the processes may have
        different numbers of validation batches, and would wait for each other for ever.
        """
        together = self.global_ranking and dist.is_available() and dist.is_initialized()
        together = together and torch.is_grad_enabled()
        return dist.group.WORLD if together else None

    def _log(self, num_positives: int, **scalars) -> None:
        # Without positives the loss is 0 by definition, which would read as perfect.
        # Without gradients it is no training step, and no scalar of the training.
        if num_positives == 0 or not has_event_storage() or not torch.is_grad_enabled():
            return
        storage = get_event_storage()
        if (storage.iter + 1) % _EVENT_PERIOD:
            return
        for name, value in scalars.items():
            value = value.detach() if isinstance(value, Tensor) else value
            storage.put_scalar(f"{self.prefix}/{name}", value, smoothing_hint=False)


class ALRPHeadLosses(RankingHeadLosses):
    """aLRP Loss with GIoU between boxes.

    Args:
        tau: IoU of a true positive in the localisation error.
        self_balance: weight of the localisation part; None for 1.
        kwargs: of :class:`RankingHeadLosses`.
    """

    compares_boxes = True

    def __init__(
        self,
        *,
        tau: float = 0.5,
        self_balance: SelfBalance | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.tau = tau
        self.self_balance = self_balance

    def forward(self, pred_logits, gt_classes, predicted, expected, *, num_images=1):
        loc_errors = localization_error(predicted, expected, tau=self.tau)
        targets = self._targets(gt_classes)
        output = alrp_loss(
            pred_logits.flatten(), targets, loc_errors, delta=self.delta, group=self._group()
        )
        weight = 1.0 if self.self_balance is None else self.self_balance(output)
        self._log(
            len(loc_errors),
            loss=output.cls + output.loc,
            precision=1 - output.cls,
            loc_error=loc_errors.mean(),
            self_balance_weight=weight,
        )
        return {
            "loss_cls": output.cls,
            "loss_box_reg": weight * output.loc,
        }


class APHeadLosses(RankingHeadLosses):
    """AP Loss with smooth L1 between encoded boxes, a mean over all 4 P numbers.

    Args:
        smooth_l1_beta: where the smooth L1 loss turns from squared to absolute error.
        kwargs: of :class:`RankingHeadLosses`.
    """

    compares_boxes = False

    def __init__(self, *, smooth_l1_beta: float = 1.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.smooth_l1_beta = smooth_l1_beta

    def forward(self, pred_logits, gt_classes, predicted, expected, *, num_images=1):
        loss_cls = ap_loss(
            pred_logits.flatten(), self._targets(gt_classes), delta=self.delta, group=self._group()
        )
        self._log(len(expected), precision=1 - loss_cls)
        total = _smooth_l1_sum(predicted, expected, self.smooth_l1_beta)
        return {"loss_cls": loss_cls, "loss_box_reg": total / max(predicted.numel(), 1)}


class FocalHeadLosses(HeadLosses):
    """Focal loss and smooth L1, the published baseline of FoveaBox; nothing is ranked.

    The focal loss (Lin et al., arXiv:1708.02002) is a sum over all candidates and classes, divided
    by P plus the number of images; smooth L1 a sum over the 4 P encoded numbers, divided by P.

    Args:
        alpha: weight of a positive, against 1 - alpha of a negative.
        gamma: exponent of the focal loss.
        smooth_l1_beta: where the smooth L1 loss turns from squared to absolute error.
        kwargs: of :class:`HeadLosses`.
    """

    compares_boxes = False

    def __init__(
        self, *, alpha: float = 0.4, gamma: float = 1.5, smooth_l1_beta: float = 0.11, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha
        self.gamma = gamma
        self.smooth_l1_beta = smooth_l1_beta

    def forward(self, pred_logits, gt_classes, predicted, expected, *, num_images=1):
        rows = (gt_classes >= 0).nonzero().squeeze(1)
        targets = self._targets(gt_classes[rows]).view(len(rows), -1)
        total_cls = sigmoid_focal_loss(
            pred_logits[rows], targets, alpha=self.alpha, gamma=self.gamma, reduction="sum"
        )
        total_box_reg = _smooth_l1_sum(predicted, expected, self.smooth_l1_beta)
        return {
            "loss_cls": total_cls / (len(predicted) + num_images),
            "loss_box_reg": total_box_reg / max(len(predicted), 1),
        }


def _smooth_l1_sum(predicted: Tensor, expected: Tensor, beta: float) -> Tensor:
    # A sum is 0 in the graph without positives, where a mean would be NaN.
    return F.smooth_l1_loss(predicted.float(), expected.float(), beta=beta, reduction="sum")


def load_former_names(owner: nn.Module) -> None:
    """Let a module load checkpoints of versions that called its ``head_losses`` ranking_losses."""
    owner._register_load_state_dict_pre_hook(_rename_former)


def _rename_former(state_dict: dict[str, Tensor], prefix: str, *args) -> None:
    former = f"{prefix}ranking_losses."
    for name in [name for name in state_dict if name.startswith(former)]:
        state_dict[f"{prefix}head_losses.{name[len(former):]}"] = state_dict.pop(name)


def build_head_losses(
    cfg, num_classes: int, *, tau: float | None = None, **options
) -> RankingHeadLosses:
    """Losses by ``MODEL.ALRP``; a self-balance period of 0 is left open.

    Args:
        cfg: with the keys of :func:`alrp.add_alrp_config`.
        num_classes: K foreground classes.
        tau: IoU of a true positive, in place of ``MODEL.ALRP.TAU``; aLRP only.
        options: of the losses' class, in place of what the config says.

    Raises:
        UserError: for a ``MODEL.ALRP.LOSS_TYPE`` other than "alrp" and "ap"; :class:`FoveaBox`
            builds the losses of "focal" itself.
    """
    alrp = cfg.MODEL.ALRP
    options = {
        "num_classes": num_classes,
        "delta": alrp.DELTA,
        "global_ranking": alrp.GLOBAL_RANKING,
        **options,
    }
    if alrp.LOSS_TYPE == "ap":
        return APHeadLosses(**{"smooth_l1_beta": alrp.SMOOTH_L1_BETA, **options})
    if alrp.LOSS_TYPE != "alrp":
        raise UserError(
            'MODEL.ALRP.LOSS_TYPE must be "alrp" or "ap", or for a FoveaBox also "focal", '
            f'but is "{alrp.LOSS_TYPE}".'
        )
    balance = alrp.SELF_BALANCE
    if balance.ENABLED:
        options.setdefault("self_balance", SelfBalance(balance.PERIOD or None, balance.INIT_WEIGHT))
    return ALRPHeadLosses(tau=alrp.TAU if tau is None else tau, **options)
