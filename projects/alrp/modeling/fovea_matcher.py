"""Matching of FoveaBox cells and ground-truth boxes."""

from __future__ import annotations

import math
from typing import Sequence
import torch
from torch import Tensor

from .tensors import filled_up, vector


class FoveaMatcher:
    """Targets of FoveaBox (Kong et al., arXiv:1904.03797, Sec. 3.2), as published with aLRP.

    A ground truth belongs to every level whose range holds the square root of its area; these may
    be several levels, or none. On such a level it claims the cells whose centre lies in its fovea:
    the box around its own centre with ``sigma`` times its sides. A fovea that lies beyond the grid
    claims the nearest cells at the border. A cell with several claims goes to the smallest ground
    truth (of equal areas to the last). All other cells are negative, also on padding; none is
    ignored.

    Work and memory grow with the number of claims, not with cells times ground truths. A GPU is
    waited for once in each call: for the number of claims.

    Args:
        strides: L strides of the levels, in pixels.
        scale_ranges: L pairs of the least and the greatest square root of an area, in pixels, both
            included.
        sigma: sides of the fovea in sides of the ground truth; in (0, 1].

    Raises:
        ValueError: if the numbers of levels differ, or sigma or a range is out of place.
    """

    def __init__(
        self,
        strides: Sequence[int],
        scale_ranges: Sequence[tuple[float, float]],
        sigma: float = 0.4,
    ) -> None:
        if len(strides) != len(scale_ranges):
            raise ValueError(
                f"FoveaMatcher: there are {len(strides)} strides but {len(scale_ranges)} scale "
                "ranges; pass one range per level."
            )
        if not all(0 <= low <= high for low, high in scale_ranges):
            raise ValueError(
                "FoveaMatcher: scale_ranges must be pairs 0 <= low <= high in pixels, but are "
                f"{[tuple(pair) for pair in scale_ranges]}."
            )
        if not 0 < sigma <= 1:
            raise ValueError(f"FoveaMatcher: sigma must be in (0, 1], but is {sigma}.")
        self.strides = tuple(strides)
        self.scale_ranges = tuple((low, high) for low, high in scale_ranges)
        self.sigma = sigma

    def __call__(
        self, gt_boxes: Tensor, grid_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """:meth:`match_batch` of one image: (R,) and (R,) from (M, 4)."""
        matched_idxs, match_labels = self.match_batch([gt_boxes], grid_sizes)
        return matched_idxs[0], match_labels[0]

    @torch.no_grad()
    def match_batch(
        self, gt_boxes: list[Tensor], grid_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Match R cells of each of N images, the levels one after another and each row by row.

        Args:
            gt_boxes: per image (M, 4) XYXY absolute pixels.
            grid_sizes: L pairs (height, width) of the levels, in cells.

        Returns:
            tuple[Tensor, Tensor]: ``matched_idxs`` (N, R) int64, the ground truth of each positive
            cell, elsewhere 0; ``match_labels`` (N, R) int8, 1 positive and 0 negative.
        """
        # What fills up an image with fewer boxes has no size that a level holds.
        boxes = filled_up(gt_boxes, math.nan)
        num_cells = sum(height * width for height, width in grid_sizes)
        painted = torch.full((len(boxes), num_cells), -1, dtype=torch.int64, device=boxes.device)
        if boxes.shape[1] == 0:
            return torch.zeros_like(painted), torch.zeros_like(painted, dtype=torch.int8)

        areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        areas, order = areas.sort(dim=1, descending=True, stable=True)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        cells, places = self._claims(boxes, areas.sqrt(), grid_sizes)
        # Smaller ones come later and paint over larger ones.
        painted.view(-1).scatter_reduce_(0, cells, places, "amax")
        positive = painted >= 0
        return order.gather(1, painted.clamp(min=0)) * positive, positive.to(torch.int8)

    def _claims(
        self, gt_boxes: Tensor, sizes: Tensor, grid_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """All pairs of a cell (T,) and a ground truth (T,) that claims it.

        Args:
            gt_boxes: (N, M, 4).
            sizes: (N, M) square roots of their areas.
            grid_sizes: of the L levels.

        Returns:
            tuple[Tensor, Tensor]: indices in the flattened cells (N, R), and from 0 to M - 1.
        """
        (num_images, num_gt), num_cells = sizes.shape, sum(h * w for h, w in grid_sizes)
        gt_boxes, sizes = gt_boxes.flatten(0, 1), sizes.flatten()
        heights, widths = (vector(gt_boxes, x, torch.int64) for x in zip(*grid_sizes))
        first, extent = self._foveas(gt_boxes, torch.stack([widths, heights], dim=1))
        low, high = (vector(sizes, ends) for ends in zip(*self.scale_ranges))
        in_range = (sizes >= low[:, None]) & (sizes <= high[:, None])  # (L, N * M)

        first, extent = first.flatten(0, 1), extent.flatten(0, 1)  # (L * N * M, 2)
        counts = extent.prod(1) * in_range.flatten()
        rectangles = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        starts = counts.cumsum(0) - counts
        index = torch.arange(len(rectangles), device=counts.device) - starts[rectangles]
        columns = first[rectangles, 0] + index % extent[rectangles, 0]
        rows = first[rectangles, 1] + index // extent[rectangles, 0]

        level_sizes = heights * widths
        levels = rectangles // len(gt_boxes)
        starts = (level_sizes.cumsum(0) - level_sizes)[levels]
        if num_images > 1:
            starts = starts + rectangles // num_gt % num_images * num_cells
        return starts + rows * widths[levels] + columns, rectangles % num_gt

    def _foveas(self, gt_boxes: Tensor, grid_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """First column and row (L, M, 2) of each fovea and its numbers of columns and rows.

        Args:
            gt_boxes: (M, 4).
            grid_sizes: (L, 2) width and height in cells.
        """
        scaled = gt_boxes / vector(gt_boxes, self.strides)[:, None, None]  # (L, M, 4) in cells
        corner, half = scaled[..., :2], 0.5 * (scaled[..., 2:] - scaled[..., :2])
        first = (corner + (1 - self.sigma) * half - 0.5).ceil().long()
        last = (corner + (1 + self.sigma) * half - 0.5).floor().long()
        # Both ends are moved into the grid, as published: at its border this fills a fovea that
        # holds no centre of a cell, which elsewhere is empty (last = first - 1).
        limit = grid_sizes[:, None] - 1
        first, last = (torch.minimum(x.clamp(min=0), limit) for x in (first, last))
        return first, (last - first + 1).clamp(min=0)
