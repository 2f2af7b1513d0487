"""Training targets of anchors and proposals: matching, then classes and boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from detectron2.structures import Boxes, Instances


@torch.no_grad()
def match_anchors(
    matcher,
    anchors: list[Boxes],
    gt_instances: list[Instances],
    size_divisibility: int,
    boundary_thresh: int = -1,
) -> tuple[list[Tensor], list[Tensor]]:
    """Match the anchors of each image; those outside the image's own padded area are ignored.

    Images are padded to the largest of the batch; what an anchor sees beyond the padding of its own
    image depends on its neighbours in the batch.

    Args:
        matcher: of :mod:`alrp.modeling.matcher`.
        anchors: per level, R in all.
        gt_instances: per image, with ``gt_boxes``.
        size_divisibility: what the sides of an image are padded to a multiple of; 0 for none.
        boundary_thresh: pixels by which an anchor may reach over the border of its image, or -1 for
            no limit; those that reach farther are ignored.

    Returns:
        tuple[list[Tensor], list[Tensor]]: per image, what the matcher returns, (R,) int64 and
            (R,) int8.
    """
    divisor = max(size_divisibility, 1)
    padded_sizes = [
        tuple(-(-side // divisor) * divisor for side in gt_i.image_size) for gt_i in gt_instances
    ]
    batch_size = tuple(max(sides) for sides in zip(*padded_sizes))
    all_anchors = [a.tensor for a in anchors]
    matched_idxs, match_labels = [], []
    for gt_i, padded_size in zip(gt_instances, padded_sizes):
        gt_boxes_i = gt_i.gt_boxes.tensor
        if padded_size == batch_size and boundary_thresh < 0:
            idxs_i, labels_i = matcher(gt_boxes_i, all_anchors)
        else:  # not for all images, because masks stall a GPU
            inside = _inside(all_anchors, padded_size)
            if boundary_thresh >= 0:
                limits = gt_i.image_size, boundary_thresh
                inside = [m & a.inside_box(*limits) for m, a in zip(inside, anchors)]
            idxs_i, labels_i = matcher(gt_boxes_i, [a[m] for a, m in zip(all_anchors, inside)])
            mask = torch.cat(inside)
            idxs_i = idxs_i.new_zeros(mask.shape).masked_scatter(mask, idxs_i)
            labels_i = labels_i.new_full(mask.shape, -1).masked_scatter(mask, labels_i)
        matched_idxs.append(idxs_i)
        match_labels.append(labels_i)
    return matched_idxs, match_labels


def matched_classes(
    gt_classes: Tensor, matched_idxs: Tensor, match_labels: Tensor, num_classes: int
) -> Tensor:
    """Classes (R,) int64 of the anchors or proposals of one image.

    Args:
        gt_classes: (M,) int64.
        matched_idxs: (R,) int64, indices of the matched ground truth.
        match_labels: (R,) 1 positive, 0 negative, -1 ignored.
        num_classes: K.

    Returns:
        Tensor: 0..K-1 the class of a positive, K background, -1 ignored.
    """
    if len(gt_classes):
        classes = gt_classes[matched_idxs].masked_fill(match_labels == 0, num_classes)
    else:
        classes = torch.full_like(matched_idxs, num_classes)
    return classes.masked_fill(match_labels == -1, -1)


def matched_boxes(gt_boxes: Tensor, matched_idxs: Tensor) -> Tensor:
    """(R, 4) the matched ground truth, from (M, 4) and (R,); zeros if there is none."""
    if len(gt_boxes) == 0:
        return gt_boxes.new_zeros(len(matched_idxs), 4)
    return gt_boxes[matched_idxs]


def matched_targets(
    gt_instances: list[Instances],
    matched_idxs: list[Tensor],
    match_labels: list[Tensor],
    num_classes: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Per image :func:`matched_classes` and :func:`matched_boxes`, (R,) and (R, 4)."""
    gt_classes, gt_boxes = [], []
    for gt_i, idxs_i, labels_i in zip(gt_instances, matched_idxs, match_labels):
        gt_classes.append(matched_classes(gt_i.gt_classes, idxs_i, labels_i, num_classes))
        gt_boxes.append(matched_boxes(gt_i.gt_boxes.tensor, idxs_i))
    return gt_classes, gt_boxes


def _inside(anchors: list[Tensor], size: tuple[int, ...]) -> list[Tensor]:
    """Per level, whether the centre of each anchor lies inside an area of (height, width)."""
    # Rounded corners can push a centre across the border by a fraction of a pixel.
    limit = anchors[0].new_tensor([size[1], size[0]]) - 1e-2
    return [((a[:, :2] + a[:, 2:]) / 2 < limit).all(1) for a in anchors]
