"""The losses of a detection head, by their classification loss."""

from __future__ import annotations

from fvcore.nn import sigmoid_focal_loss

from ..errors import UserError
from ..losses import alrp_loss, ap_loss, localization_error, rs_loss
from ..losses.localization import check_localization_tau
from .box_losses import BoxLoss, SmoothL1Loss, WeightedGIoULoss, build_box_loss, matched_iou
from .bridge import ClassificationLoss, HeadLosses, RankingHeadLosses


class ALRPHeadLosses(RankingHeadLosses):
    """aLRP Loss, whose localisation errors are those of GIoU.

    Args:
        tau: IoU of a true positive in the localisation error.
        box_loss: None for the localisation part of aLRP itself, as published. Any other takes its
            place; localisation errors then still rank the logits.
        self_balance: of :class:`HeadLosses`, or for the localisation part of aLRP a
            ``SelfBalance``.
        kwargs: of :class:`RankingHeadLosses`.
    """

    published_box_loss = "ranked"
    _ranks_by_boxes = True

    def __init__(self, *, tau: float = 0.5, box_loss: BoxLoss | None = None, **kwargs) -> None:
        super().__init__(box_loss=box_loss, **kwargs)
        check_localization_tau(tau)
        self.tau = tau

    def _classify(self, pred_logits, gt_classes, predicted, expected, num_images):
        errors = localization_error(predicted, expected, tau=self.tau)
        # A box loss of its own leaves nothing for ``loc`` to train.
        output = alrp_loss(
            pred_logits.flatten(),
            self._targets(gt_classes),
            errors if self.box_loss is None else errors.detach(),
            delta=self.delta,
            group=self._group(),
        )
        value = output.cls + output.loc
        scalars = {"loss": value, "precision": 1 - output.cls, "loc_error": errors.mean()}
        # The gradients of the logits add up to the whole of aLRP, errors included.
        return ClassificationLoss(output.cls, value, scalars, output)


class APHeadLosses(RankingHeadLosses):
    """AP Loss.

    Args:
        smooth_l1_beta: of :class:`SmoothL1Loss`.
        box_loss: None for :class:`SmoothL1Loss`, as published.
        kwargs: of :class:`RankingHeadLosses`.
    """

    published_box_loss = "smooth_l1"

    def __init__(
        self, *, smooth_l1_beta: float = 1.0, box_loss: BoxLoss | None = None, **kwargs
    ) -> None:
        super().__init__(box_loss=box_loss or SmoothL1Loss(smooth_l1_beta), **kwargs)

    def _classify(self, pred_logits, gt_classes, predicted, expected, num_images):
        loss = ap_loss(
            pred_logits.flatten(), self._targets(gt_classes), delta=self.delta, group=self._group()
        )
        return ClassificationLoss(loss, loss, {"precision": 1 - loss})


class RSHeadLosses(RankingHeadLosses):
    """Rank & Sort Loss (Oksuz et al., ICCV 2021), which sorts positives by the IoU of their boxes.

    The IoU is that of the boxes as they are predicted in this step, and gets no gradient.

    Args:
        delta: of :class:`RankingHeadLosses`, or 0 for the hard step; None for 0.5, as published.
        box_loss: None for :class:`WeightedGIoULoss`, as published; with an
            :class:`IterationBalance` as ``self_balance``.
        kwargs: of :class:`RankingHeadLosses`.
    """

    published_box_loss = "weighted_giou"
    published_delta = 0.5
    _has_hard_step = True
    _ranks_by_boxes = True

    def __init__(
        self, *, delta: float | None = None, box_loss: BoxLoss | None = None, **kwargs
    ) -> None:
        super().__init__(delta=delta, box_loss=box_loss or WeightedGIoULoss(), **kwargs)

    def _classify(self, pred_logits, gt_classes, predicted, expected, num_images):
        ious = matched_iou(predicted, expected)
        output = rs_loss(
            pred_logits.flatten(),
            self._targets(gt_classes),
            ious,
            delta=self.delta,
            group=self._group(),
        )
        loss = output.ranking + output.sorting
        scalars = {"ranking": output.ranking, "sorting": output.sorting, "iou": ious.mean()}
        return ClassificationLoss(loss, loss, scalars)


class FocalHeadLosses(HeadLosses):
    """Focal loss, the published baseline of FoveaBox; nothing is ranked.

    The focal loss (Lin et al., arXiv:1708.02002) is a sum over all candidates and classes, divided
    by P plus the number of images.

    Args:
        alpha: weight of a positive, against 1 - alpha of a negative.
        gamma: exponent of the focal loss.
        smooth_l1_beta: of :class:`SmoothL1Loss`.
        box_loss: None for :class:`SmoothL1Loss` per box, as published.
        kwargs: of :class:`HeadLosses`.
    """

    published_box_loss = "smooth_l1"

    def __init__(
        self,
        *,
        alpha: float = 0.4,
        gamma: float = 1.5,
        smooth_l1_beta: float = 0.11,
        box_loss: BoxLoss | None = None,
        **kwargs,
    ) -> None:
        super().__init__(box_loss=box_loss or SmoothL1Loss(smooth_l1_beta, per_box=True), **kwargs)
        self.alpha = alpha
        self.gamma = gamma

    def _classify(self, pred_logits, gt_classes, predicted, expected, num_images):
        rows = (gt_classes >= 0).nonzero().squeeze(1)
        targets = self._targets(gt_classes[rows]).view(len(rows), -1)
        total = sigmoid_focal_loss(
            pred_logits[rows], targets, alpha=self.alpha, gamma=self.gamma, reduction="sum"
        )
        loss = total / (len(predicted) + num_images)
        return ClassificationLoss(loss, loss, {})


# MODEL.ALRP.LOSS_TYPE -> the losses of that name.
HEAD_LOSSES: dict[str, type[HeadLosses]] = {
    "alrp": ALRPHeadLosses,
    "ap": APHeadLosses,
    "rs": RSHeadLosses,
    "focal": FocalHeadLosses,
}


def build_head_losses(
    cfg,
    num_classes: int,
    *,
    tau: float | None = None,
    prefix: str = "alrp",
    focal: dict[str, float] | None = None,
) -> HeadLosses:
    """Losses by ``MODEL.ALRP``; a self-balance period of 0 is left open.

    Args:
        cfg: with the keys of :func:`alrp.add_alrp_config`.
        num_classes: K foreground classes.
        tau: IoU of a true positive, in place of ``MODEL.ALRP.TAU``; aLRP only.
        prefix: of the names of logged scalars.
        focal: "alpha" and "gamma" of a head that may have focal loss.

    Raises:
        UserError: for an unknown name or number in ``MODEL.ALRP``, or a combination without a
            meaning.
    """
    alrp = cfg.MODEL.ALRP
    losses = HEAD_LOSSES.get(alrp.LOSS_TYPE)
    if losses is None or (losses is FocalHeadLosses and not focal):
        raise UserError(
            'MODEL.ALRP.LOSS_TYPE must be "rs", "alrp" or "ap", or for a FoveaBox also "focal", '
            f'but is "{alrp.LOSS_TYPE}".'
        )
    try:
        box_loss, balance = build_box_loss(cfg, losses.published_box_loss)
        options = {
            "num_classes": num_classes,
            "box_loss": box_loss,
            "self_balance": balance,
            "prefix": prefix,
        }
        if losses is FocalHeadLosses:
            options.update(focal)
        else:
            options.update(delta=alrp.DELTA or None, global_ranking=alrp.GLOBAL_RANKING)
        if losses is ALRPHeadLosses:
            options.update(tau=alrp.TAU if tau is None else tau)
        return losses(**options)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"MODEL.ALRP: {error}") from error
