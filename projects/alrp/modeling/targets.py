"""Training targets of anchors and proposals: matching, then classes and boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from detectron2.structures import Boxes, Instances

from .tensors import filled_up, vector


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
    gt_boxes = [gt_i.gt_boxes.tensor for gt_i in gt_instances]
    inside = None
    if boundary_thresh >= 0:
        every = Boxes.cat(anchors)
        borders = [every.inside_box(x.image_size, boundary_thresh) for x in gt_instances]
        padded = [_inside(all_anchors, size) for size in padded_sizes]
        inside = torch.stack(borders) & torch.stack(padded)
    elif any(size != batch_size for size in padded_sizes):
        limits = [None if size == batch_size else size for size in padded_sizes]
        inside = torch.stack([_inside(all_anchors, limit) for limit in limits])
    if all_anchors[0].device.type == "cpu" or not hasattr(matcher, "match_batch"):
        return _match_in_turn(matcher, gt_boxes, all_anchors, inside)
    boxes = filled_up(gt_boxes)
    matched_idxs, match_labels = matcher.match_batch(boxes, all_anchors, inside)
    if inside is not None:
        match_labels = match_labels.masked_fill(~inside, -1)
    return list(matched_idxs), list(match_labels)


def _match_in_turn(
    matcher, gt_boxes: list[Tensor], anchors: list[Tensor], inside: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Match image by image: what a CPU needs for one fits its cache."""
    if inside is None:
        matches = [matcher(gt_boxes_i, anchors) for gt_boxes_i in gt_boxes]
        return tuple(map(list, zip(*matches)))
    matched_idxs, match_labels = [], []
    sizes = [len(level) for level in anchors]
    for gt_boxes_i, mask in zip(gt_boxes, inside):
        inside_i = [level[m] for level, m in zip(anchors, mask.split(sizes))]
        idxs_i, labels_i = matcher(gt_boxes_i, inside_i)
        matched_idxs.append(idxs_i.new_zeros(mask.shape).masked_scatter(mask, idxs_i))
        match_labels.append(labels_i.new_full(mask.shape, -1).masked_scatter(mask, labels_i))
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
    idxs, labels = (torch.stack(tuple(x)) for x in (matched_idxs, match_labels))
    classes = filled_up([gt_i.gt_classes for gt_i in gt_instances], least=1).gather(1, idxs)
    classes = classes.masked_fill(labels == 0, num_classes).masked_fill(labels == -1, -1)
    boxes = filled_up([gt_i.gt_boxes.tensor for gt_i in gt_instances], least=1)
    boxes = boxes.gather(1, idxs[..., None].expand(-1, -1, 4))
    return list(classes), list(boxes)


def _inside(anchors: list[Tensor], size: tuple[int, ...] | None) -> Tensor:
    """(R,) whether the centre of each anchor lies inside an area of (height, width); None: yes."""
    boxes = torch.cat(anchors)
    if size is None:
        return torch.ones_like(boxes[:, 0], dtype=torch.bool)
    # Rounded corners can push a centre across the border by a fraction of a pixel.
    limit = vector(boxes, [size[1], size[0]]) - 1e-2
    return ((boxes[:, :2] + boxes[:, 2:]) / 2 < limit).all(1)
