"""Heads on regions that train on every proposal."""

from __future__ import annotations

import torch
from torch import Tensor

from ..targets import matched_classes


class AllProposals:
    """Takes the sampling out of any subclass of Detectron2's ``ROIHeads``.

    To be named before it: ``class UnsampledRes5ROIHeads(AllProposals, Res5ROIHeads)``.

    A ranking loss has no use for a fixed share of positives. All proposals are kept, in their
    order, with the class of their match; ``batch_size_per_image`` and ``positive_fraction`` have no
    effect.
    """

    num_classes: int

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the method of this name in ``ROIHeads`` returns, for all proposals of an image.

        Args:
            matched_idxs: (R,) int64, the matched ground truth.
            matched_labels: (R,) 1 positive, 0 negative, -1 ignored.
            gt_classes: (M,) int64.

        Returns:
            tuple[Tensor, Tensor]: (R,) int64 indices 0 to R - 1; and (R,) int64 classes, the number
            of classes for the background and -1 for an ignored proposal.
        """
        classes = matched_classes(gt_classes, matched_idxs, matched_labels, self.num_classes)
        return torch.arange(len(classes), device=classes.device), classes
