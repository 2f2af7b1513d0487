"""The one bridge from detection heads to ranking losses."""

from __future__ import annotations

from typing import Optional
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.utils.events import get_event_storage, has_event_storage

from ..errors import UserError
from ..losses import SelfBalance, alrp_loss, ap_loss, localization_error

# Reading a scalar from a GPU stalls it, and writers look at this period only.
_EVENT_PERIOD = 20


class RankingLosses(nn.Module):
    """Classification and box losses of one head; all rows of a call are ranked together.

    Attributes:
        compares_boxes: whether :meth:`forward` takes decoded boxes or encoded ones.

    Args:
        num_classes: K foreground classes; 1 for a region proposal head.
        delta: half width of the smoothed step, in logit units.
        prefix: of the names of logged scalars.
    """

    compares_boxes: bool

    def __init__(self, *, num_classes: int, delta: float = 1.0, prefix: str = "alrp") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.delta = delta
        self.prefix = prefix

    def forward(
        self, pred_logits: Tensor, gt_classes: Tensor, predicted: Tensor, expected: Tensor
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

        Returns:
            dict[str, Tensor]: scalars "loss_cls" and "loss_box_reg".
        """
        raise NotImplementedError

    def _targets(self, gt_classes: Tensor) -> Tensor:
        """(Q * K,) int8: 1 at the class of a positive row, -1 all over an ignored row, else 0.

        One-hot encoding would take eight times the memory.
        """
        ignored = (gt_classes == -1).to(torch.int8).neg()
        positive = (gt_classes >= 0) & (gt_classes < self.num_classes)
        targets = ignored[:, None].repeat(1, self.num_classes)
        column = gt_classes.clamp(0, self.num_classes - 1)[:, None]
        return targets.scatter_(1, column, torch.where(positive, 1, ignored)[:, None]).flatten()

    def _log(self, num_positives: int, **scalars) -> None:
        # Without positives the loss is 0 by definition, which would read as perfect.
        if num_positives == 0 or not has_event_storage():
            return
        storage = get_event_storage()
        if (storage.iter + 1) % _EVENT_PERIOD:
            return
        for name, value in scalars.items():
            value = value.detach() if isinstance(value, Tensor) else value
            storage.put_scalar(f"{self.prefix}/{name}", value, smoothing_hint=False)


class ALRPLosses(RankingLosses):
    """aLRP Loss with GIoU between boxes.

    Args:
        tau: IoU of a true positive in the localisation error.
        self_balance: weight of the localisation part; None for 1.
        loss_weight: factor on both losses.
        kwargs: of :class:`RankingLosses`.
    """

    compares_boxes = True

    def __init__(
        self,
        *,
        tau: float = 0.5,
        self_balance: Optional[SelfBalance] = None,
        loss_weight: float = 1.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.tau = tau
        self.self_balance = self_balance
        self.loss_weight = loss_weight

    def forward(self, pred_logits, gt_classes, predicted, expected):
        loc_errors = localization_error(predicted, expected, tau=self.tau)
        targets = self._targets(gt_classes)
        output = alrp_loss(pred_logits.flatten(), targets, loc_errors, delta=self.delta)
        weight = 1.0 if self.self_balance is None else self.self_balance(output)
        self._log(
            len(loc_errors),
            loss=output.cls + output.loc,
            precision=1 - output.cls,
            loc_error=loc_errors.mean(),
            self_balance_weight=weight,
        )
        return {
            "loss_cls": self.loss_weight * output.cls,
            "loss_box_reg": self.loss_weight * weight * output.loc,
        }


class APLosses(RankingLosses):
    """AP Loss with smooth L1 between encoded boxes, a mean over all 4 P numbers.

    Args:
        smooth_l1_beta: where the smooth L1 loss turns from squared to absolute error.
        kwargs: of :class:`RankingLosses`.
    """

    compares_boxes = False

    def __init__(self, *, smooth_l1_beta: float = 1.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.smooth_l1_beta = smooth_l1_beta

    def forward(self, pred_logits, gt_classes, predicted, expected):
        loss_cls = ap_loss(pred_logits.flatten(), self._targets(gt_classes), delta=self.delta)
        self._log(len(expected), precision=1 - loss_cls)
        # A sum is 0 in the graph without positives, where a mean would be NaN.
        total = F.smooth_l1_loss(
            predicted.float(), expected.float(), beta=self.smooth_l1_beta, reduction="sum"
        )
        return {"loss_cls": loss_cls, "loss_box_reg": total / max(predicted.numel(), 1)}


def build_ranking_losses(cfg, num_classes: int, **options) -> RankingLosses:
    """Losses by ``MODEL.ALRP``; a self-balance period of 0 is left open.

    Args:
        cfg: with the keys of :func:`alrp.add_alrp_config`.
        num_classes: K foreground classes.
        options: of the losses' class, in place of what the config says.

    Raises:
        UserError: for a ``MODEL.ALRP.LOSS_TYPE`` other than "alrp" and "ap".
    """
    alrp = cfg.MODEL.ALRP
    options = {"num_classes": num_classes, "delta": alrp.DELTA, **options}
    if alrp.LOSS_TYPE == "ap":
        return APLosses(**{"smooth_l1_beta": alrp.SMOOTH_L1_BETA, **options})
    if alrp.LOSS_TYPE != "alrp":
        raise UserError(f'MODEL.ALRP.LOSS_TYPE must be "alrp" or "ap", but is "{alrp.LOSS_TYPE}".')
    balance = alrp.SELF_BALANCE
    if balance.ENABLED:
        options.setdefault("self_balance", SelfBalance(balance.PERIOD or None, balance.INIT_WEIGHT))
    return ALRPLosses(**{"tau": alrp.TAU, **options})
