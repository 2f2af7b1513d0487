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

    Args:
        num_classes: K foreground classes; 1 for a region proposal head.
        loss_type: "alrp": aLRP with GIoU; "ap": AP Loss with smooth L1 on deltas.
        delta: half width of the smoothed step, in logit units.
        tau: IoU of a true positive in the localisation error of aLRP.
        self_balance: weight of the localisation part of aLRP; None for 1.
        loss_weight: factor on both losses.
        smooth_l1_beta: of "ap".
        prefix: of the names of logged scalars.

    Raises:
        UserError: for another ``loss_type``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        loss_type: str = "alrp",
        delta: float = 1.0,
        tau: float = 0.5,
        self_balance: Optional[SelfBalance] = None,
        loss_weight: float = 1.0,
        smooth_l1_beta: float = 1.0,
        prefix: str = "alrp",
    ) -> None:
        super().__init__()
        if loss_type not in ("alrp", "ap"):
            raise UserError(f'MODEL.ALRP.LOSS_TYPE must be "alrp" or "ap", but is "{loss_type}".')
        self.num_classes = num_classes
        self.loss_type = loss_type
        self.delta = delta
        self.tau = tau
        self.self_balance = self_balance
        self.loss_weight = loss_weight
        self.smooth_l1_beta = smooth_l1_beta
        self.prefix = prefix

    @classmethod
    def from_config(cls, cfg, num_classes: int) -> RankingLosses:
        """Build from ``MODEL.ALRP``; a self-balance period of 0 is left open."""
        alrp = cfg.MODEL.ALRP
        self_balance = None
        if alrp.LOSS_TYPE == "alrp" and alrp.SELF_BALANCE.ENABLED:
            self_balance = SelfBalance(
                alrp.SELF_BALANCE.PERIOD or None, alrp.SELF_BALANCE.INIT_WEIGHT
            )
        return cls(
            num_classes=num_classes,
            loss_type=alrp.LOSS_TYPE,
            delta=alrp.DELTA,
            tau=alrp.TAU,
            self_balance=self_balance,
            smooth_l1_beta=alrp.SMOOTH_L1_BETA,
        )

    def forward(
        self, pred_logits: Tensor, gt_classes: Tensor, pred_boxes: Tensor, gt_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Losses of Q candidates, P of them positive.

        The p-th positive of the flattened (Q, K) targets is the p-th row with a foreground class,
        because a row holds at most one; so boxes are passed in row order.

        Args:
            pred_logits: (Q, K).
            gt_classes: (Q,) int64; 0..K-1 foreground, K background, -1 ignored.
            pred_boxes: (P, 4) XYXY of the rows with a foreground class; deltas for "ap".
            gt_boxes: (P, 4) in the same frame; target deltas for "ap".

        Returns:
            dict[str, Tensor]: scalars "loss_cls" and "loss_box_reg".
        """
        targets = self._targets(gt_classes).flatten()
        logits = pred_logits.flatten()
        if self.loss_type == "ap":
            loss_cls = ap_loss(logits, targets, delta=self.delta)
            loss_box_reg = self._smooth_l1(pred_boxes, gt_boxes)
            self._log(len(gt_boxes), precision=1 - loss_cls)
        else:
            loc_errors = localization_error(pred_boxes, gt_boxes, tau=self.tau)
            output = alrp_loss(logits, targets, loc_errors, delta=self.delta)
            weight = 1.0 if self.self_balance is None else self.self_balance(output)
            loss_cls, loss_box_reg = output.cls, weight * output.loc
            self._log(
                len(loc_errors),
                loss=output.cls + output.loc,
                precision=1 - output.cls,
                loc_error=loc_errors.mean(),
                self_balance_weight=weight,
            )
        return {
            "loss_cls": self.loss_weight * loss_cls,
            "loss_box_reg": self.loss_weight * loss_box_reg,
        }

    def _targets(self, gt_classes: Tensor) -> Tensor:
        """(Q, K) int8: 1 at the class of a positive row, -1 all over an ignored row, 0 elsewhere.

        One-hot encoding would take eight times the memory.
        """
        ignored = (gt_classes == -1).to(torch.int8).neg()
        positive = (gt_classes >= 0) & (gt_classes < self.num_classes)
        targets = ignored[:, None].repeat(1, self.num_classes)
        column = gt_classes.clamp(0, self.num_classes - 1)[:, None]
        return targets.scatter_(1, column, torch.where(positive, 1, ignored)[:, None])

    def _smooth_l1(self, pred_deltas: Tensor, gt_deltas: Tensor) -> Tensor:
        """Mean over all 4 P numbers; 0 in the graph without positives."""
        total = F.smooth_l1_loss(
            pred_deltas.float(), gt_deltas.float(), beta=self.smooth_l1_beta, reduction="sum"
        )
        return total / max(pred_deltas.numel(), 1)

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
