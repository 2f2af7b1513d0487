"""Pairs of many boxes with very many others, without ever holding all pairs.

Work goes in blocks of the first boxes. Nothing here reads a value back from the device.
"""

from __future__ import annotations

import itertools
import math
from typing import Sequence
import torch
from torch import Tensor
from torch.nn import functional as F

# Pairs held at a time: in float32 a matrix of 4 MiB, which a processor's cache holds.
BLOCK = 1 << 20
# On other devices a matrix of 256 MiB, of which a few are held: every block costs some 30 launches.
GPU_BLOCK = 1 << 26

LOW_WORD = 0xFFFFFFFF


def blocks(boxes: Tensor, num_others: int) -> tuple[Tensor, ...]:
    """Parts (..., B, 4) of ``boxes`` (..., M, 4) that are paired with the others at a time.

    At most ``BLOCK`` pairs, on a GPU ``GPU_BLOCK``, or those of one box of each image.
    """
    num_pairs = BLOCK if boxes.device.type == "cpu" else GPU_BLOCK
    num_images = math.prod(boxes.shape[:-2])
    return boxes.split(max(1, num_pairs // max(num_images * num_others, 1)), dim=-2)


def sortable(values: Tensor, ranks: Tensor) -> Tensor:
    """Integers that sort by value and, where values are equal, by rank.

    With them ``topk`` and ``amax`` never see a tie, which they would break differently per device.

    Args:
        values: float, not negative; they sort like their bit patterns in float32.
        ranks: int64 in [0, 2^32), broadcast with ``values``.

    Returns:
        Tensor: int64, with the rank in ``LOW_WORD``.
    """
    return (values.float().view(torch.int32).long() << 32) | ranks


def nearest_per_level(
    queries: Tensor, levels: Sequence[Tensor], k: int, allowed: Tensor | None = None
) -> Tensor:
    """Indices of the ``k`` nearest points on each level, or of all if there are fewer.

    Nearest first, equal distances by index.

    Args:
        queries: (M, 2).
        levels: (R_l, 2) points of each level; R in all.
        k: points of each level.
        allowed: (M, R) bool; the points that each query may find. If a level has fewer than k of
            them, others come after them.

    Returns:
        Tensor: (M, C) int64 indices among the R points.
    """
    sizes = [len(points) for points in levels]
    if queries.device.type == "cpu" and allowed is None:
        starts = itertools.accumulate([0, *sizes[:-1]])
        found = zip(levels, starts)
        return torch.cat([nearest(queries, p, min(k, len(p))) + start for p, start in found], 1)
    # A GPU sorts a whole level faster than it starts the kernels of two rounds.
    x, y = torch.cat(levels).float().t()
    places = torch.arange(len(x), device=x.device)
    per_block, start = [], 0
    for block in blocks(queries.float(), len(x)):
        squared = (x - block[:, :1]).square_().add_((y - block[:, 1:]).square_())
        if allowed is not None:
            squared.masked_fill_(~allowed[start : start + len(block)], math.inf)
        start += len(block)
        keys = _by_distance(squared, places).split(sizes, dim=1)
        tops = [_least(level, min(k, size)) for level, size in zip(keys, sizes)]
        per_block.append(torch.cat(tops, dim=1) & LOW_WORD)
    return torch.cat(per_block)


def nearest(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """The nearest points of each query, nearest first, equal distances by index.

    Sorting all distances is slow, so there are two rounds. The points are cut into runs, and the
    nearest point of each run is found. The second round sees only the k runs whose nearest points
    are nearest: every other run has k points in front of all of its own.

    Args:
        queries: (M, 2).
        points: (R, 2); time O(M R), memory O(R + BLOCK).
        k: at most R.

    Returns:
        Tensor: (M, k) int64 indices.
    """
    width = _run_width(len(points), k)
    num_runs = -(-len(points) // width)
    places = torch.arange(num_runs * width, device=points.device).view(num_runs, width)
    pad = (0, places.numel() - len(points))
    x, y = (F.pad(row, pad, value=math.inf) for row in points.float().t())
    per_block = []
    for block in blocks(queries.float(), len(x)):
        squared = (x - block[:, :1]).square_().add_((y - block[:, 1:]).square_())
        idxs = places.flatten()
        if width > 1:
            nearest_of_run = squared.view(-1, num_runs, width).amin(2)
            runs = _smallest(nearest_of_run, places[:, 0], k) // width
            idxs = places[runs].flatten(1)  # (B, k * width)
            squared = squared.gather(1, idxs)
        per_block.append(_smallest(squared, idxs, k))
    return torch.cat(per_block)


def _run_width(num_points: int, k: int) -> int:
    """Points in a run, chosen so that both rounds sort about as many; 1 skips the first round."""
    return 1 if num_points <= 64 * k else round(math.sqrt(num_points / k))


def _smallest(squared: Tensor, idxs: Tensor, k: int) -> Tensor:
    """(M, k) of ``idxs``, those with the k least distances, equal distances by index."""
    return _least(_by_distance(squared, idxs), k) & LOW_WORD


def _by_distance(squared: Tensor, idxs: Tensor) -> Tensor:
    """Integers that sort by distance, and equal distances by index."""
    # Squares that differ by a rounding error only have equal roots, so these count as ties.
    return sortable(squared.sqrt(), idxs)


def _least(keys: Tensor, k: int) -> Tensor:
    return keys.topk(k, dim=1, largest=False, sorted=True).values


def pairwise_iou(boxes: Tensor, corners: Tensor) -> Tensor:
    """IoU, bit for bit that of Detectron2, whose (B, R, 2) layout takes several times as long.

    Args:
        boxes: (..., B, 4) XYXY.
        corners: (4, R) XYXY of the other boxes, a row for each coordinate.

    Returns:
        Tensor: (..., B, R) in [0, 1].
    """
    x1, y1, x2, y2 = boxes[..., None].unbind(-2)  # (..., B, 1) each
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    inter = torch.minimum(x2, corners[2]).sub_(torch.maximum(x1, corners[0])).clamp_(min=0)
    inter *= torch.minimum(y2, corners[3]).sub_(torch.maximum(y1, corners[1])).clamp_(min=0)
    union = ((x2 - x1) * (y2 - y1) + areas).sub_(inter)
    # The least positive number keeps 0 / 0, of boxes without area, at 0.
    return inter.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))
