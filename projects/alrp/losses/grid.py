"""A uniform grid over the knots of a :class:`StepMatrix`, by which most keys find their cell."""

from __future__ import annotations

import math
import torch
from torch import Tensor

from .step_matrix import StepMatrix

# Buckets per knot, so that few keys share a bucket with a knot, and their limits: the table of
# buckets should stay in the second level cache, and cost less than what it saves.
_BUCKETS_PER_KNOT = 80
_MIN_BUCKETS, _MAX_BUCKETS = 1 << 14, 1 << 19
_KEYS_PER_BUCKET = 4
# Groups at the least: enough that an addition seldom waits for the one before.
_NUM_SPLITS = 1 << 12
# Bucket numbers up to here are exact in float32.
_MAX_COORDINATE = 2.0**24


class Grid:
    """Buckets of one width over all knots, each pure (without a knot) or mixed.

    A pure bucket lies in one cell, so its keys need no search and no branch: a table tells their
    *group*, a run of pure buckets in one cell. Keys in mixed buckets, a few per cent, are placed
    among the knots of their bucket by a binary search.

    The buckets are as wide as a power of two and start at its multiples, so the bucket of a key is
    exact in the dtype of the key, and so are the cells, whatever the range of the logits. A grid
    too coarse for ``delta`` only has more keys to search for, and is slower.

    Args:
        matrix: its knots are on the CPU.
        num_keys: that will be placed.

    Attributes:
        MIXED: the group of all keys in mixed buckets.
        BELOW: a group below all knots, where H is 0.
        cells: (G,) int64, the cell in which each group lies; without meaning for ``MIXED``.
    """

    MIXED, BELOW = 0, 1

    def __init__(self, matrix: StepMatrix, num_keys: int) -> None:
        knots = matrix.knots
        lowest, highest = knots[0].item(), knots[-1].item()
        num_buckets = max(_BUCKETS_PER_KNOT * len(knots), _MIN_BUCKETS)
        num_buckets = max(8, min(num_buckets, _MAX_BUCKETS, num_keys // _KEYS_PER_BUCKET))
        density = num_buckets / max(highest - lowest, 1e-30)
        density = min(density, _MAX_COORDINATE / max(-lowest, highest, 1e-30) / 2)
        self._density = 2.0 ** math.floor(math.log2(density))
        # One bucket more at each end, for the rest of the axis.
        self._first = math.floor(lowest * self._density) - 1
        self._last = math.floor(highest * self._density) + 1

        buckets = (knots * self._density).floor_().long() - self._first
        num_knots = torch.bincount(buckets, minlength=self._last - self._first + 1)
        self._bucket_cells = num_knots.cumsum(0) - num_knots  # in which a bucket begins
        # Halving steps of the search among the knots of a bucket; beyond all knots it finds inf.
        most = int(num_knots.index_select(0, buckets).max())
        self._steps = [1 << k for k in reversed(range(most.bit_length()))]
        self._padded_knots = torch.cat([knots, knots.new_full((2 * self._steps[0],), math.inf)])
        self._group_buckets(num_knots == 0)

    def _group_buckets(self, pure: Tensor) -> None:
        """A group begins where the bucket before is mixed, and at regular splits."""
        begins = ~pure.roll(1)
        begins[:: max(1, len(pure) // _NUM_SPLITS)] = True
        begins &= pure
        self.cells = torch.cat([self._bucket_cells.new_zeros(1), self._bucket_cells[begins]])
        # Narrow entries keep the table in the cache; only thousands of positives need wide ones.
        dtype = torch.int16 if len(self.cells) < 2**15 else torch.int32
        self._groups = begins.cumsum(0, dtype=dtype).mul_(pure)

    def place(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Bucket and group of each key; those of NaN are below all knots.

        Args:
            keys: (T,) float32 or float64.

        Returns:
            tuple[Tensor, Tensor]: (T,) int32 buckets and (T,) int16 or int32 groups.
        """
        buckets = (keys * self._density).nan_to_num_(nan=self._first)
        buckets.clamp_(self._first, self._last).floor_().sub_(self._first)
        buckets = buckets.to(torch.int32)
        return buckets, self._groups.index_select(0, buckets)

    def search(self, keys: Tensor, buckets: Tensor) -> Tensor:
        """The cells of keys in mixed buckets: the number of knots that are not above each.

        Args:
            keys: (T,) float64.
            buckets: (T,) int32 of :meth:`place`.

        Returns:
            Tensor: (T,) int64.
        """
        cells = self._bucket_cells.index_select(0, buckets)
        for step in self._steps:
            reached = self._padded_knots.index_select(0, cells + (step - 1)) <= keys
            cells += step * reached
        return cells
