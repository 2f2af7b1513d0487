"""The work over all entries on the CPU, by compiled loops on the threads of PyTorch.

Shape shorthand as in :mod:`alrp.losses.step_matrix`; T threads.
"""

from __future__ import annotations

import ctypes
import functools
import numpy as np
from typing import Callable, Optional
import torch
from torch import Tensor

from . import kernels
from .step_matrix import PlacedKeys, StepMatrix

# Buckets: a knot should seldom share one, and the table should stay in the second level cache.
_BUCKETS_PER_KNOT = 16
_MIN_BUCKETS, _MAX_BUCKETS = 1 << 12, 1 << 17
_ENTRIES_PER_BUCKET = 4  # at the least, or filling the table costs more than it saves
# Threads: each has sums of its own to clear and to add up.
_ENTRIES_PER_THREAD = 1 << 16
_MAX_THREADS = 16
_CACHE_LINES = 16  # of float64 numbers, in pairs of lines


def survey(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Indices of the positives, and number of logits that are not finite and not ignored.

    Args:
        logits: (S,) float32 or float64.
        targets: (S,) integers; 1 positive, 0 negative, anything else ignored.
    """
    logits, targets = _array(logits), _array(targets)
    slices = _slices_for_threads(len(logits))
    found = [None] * len(slices)

    def work(t: int) -> None:
        part = slices[t]
        found[t] = kernels.survey(logits[part], targets[part], part.start)

    _in_threads(work, len(slices))
    places, num_not_finite = zip(*found)
    return torch.from_numpy(np.concatenate(places)), sum(num_not_finite)


class CompiledStepMatrix(StepMatrix):
    """A :class:`StepMatrix` on the CPU; the same sums, each in one pass over its operands.

    A table of buckets of one width tells between which knots to look for a key: mostly none or one.
    """

    def __init__(self, queries: Tensor, delta: float) -> None:
        self.queries, self._delta = queries.double(), float(delta)
        merged = kernels.merge(_array(self.queries), self._delta)
        self._edges, self._is_lower, self._query_cells = merged

    @staticmethod
    def descending_order(queries: Tensor) -> Tensor:
        return torch.from_numpy(kernels.descending_order(_array(queries.double())))

    def place(self, logits: Tensor, targets: Tensor) -> PlacedKeys:
        edges, num_cells = self._edges, len(self._edges) - 1
        num_buckets = max(_BUCKETS_PER_KNOT * len(edges), _MIN_BUCKETS)
        num_buckets = min(num_buckets, _MAX_BUCKETS, len(logits) // _ENTRIES_PER_BUCKET + 1)
        # Finite, as 0 times infinity has no bucket.
        density = min(num_buckets / (edges[-2] - edges[1]), 1e300)
        # Large memory comes from PyTorch, and so shows in its profiles.
        narrow = num_cells <= torch.iinfo(torch.int16).max
        integer = torch.int16 if narrow else torch.int32
        starts = _array(torch.empty(num_buckets + 1, dtype=integer))
        kernels.count_knots(edges, density, starts)
        cells = torch.empty(len(logits), dtype=integer)
        slices = _slices_for_threads(len(logits))
        # Two threads that write to one cache line would wait for each other all the time.
        sums = torch.zeros(len(slices), 2, num_cells + _CACHE_LINES, dtype=torch.float64)
        arrays, sum_arrays = [_array(x) for x in (logits, targets, cells)], _array(sums)

        def work(t: int) -> None:
            keys, marks, out = (array[slices[t]] for array in arrays)
            kernels.place(keys, marks, edges, density, starts, out, *sum_arrays[t])

        _in_threads(work, len(slices))
        return PlacedKeys(cells, *sums.sum(0)[:, :num_cells])

    def rmatvec(self, weights: Tensor, keys: PlacedKeys, logits: Tensor) -> Tensor:
        shape = self._edges, self._is_lower, self._delta
        profile = kernels.column_profile(_array(weights), *shape)
        result = torch.empty(len(logits), dtype=logits.dtype)
        arrays = [_array(x) for x in (logits, keys.cells, result)]
        slices = _slices_for_threads(len(logits))

        def work(t: int) -> None:
            entries, cells, out = (array[slices[t]] for array in arrays)
            kernels.evaluate(entries, cells, self._edges, profile, out)

        _in_threads(work, len(slices))
        return result

    def _sum_queries(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        queries, weights = _array(self.queries), _array(weights)
        sums = kernels.sum_queries(queries, weights, self._query_cells, self._edges)
        return tuple(map(torch.from_numpy, sums))

    def _row_sums(self, mass: Tensor, moment: Tensor) -> Tensor:
        shape = self._edges, self._is_lower, self._delta
        return torch.from_numpy(kernels.row_sums(_array(mass), _array(moment), *shape))


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory where it is contiguous, else a copy."""
    return tensor.detach().contiguous().numpy()


def _slices_for_threads(num_entries: int) -> list[slice]:
    """Equal shares of all entries, one for each thread that is worth its start."""
    most = min(torch.get_num_threads(), _MAX_THREADS)
    num_threads = max(1, min(most, num_entries // _ENTRIES_PER_THREAD))
    bounds = [num_entries * t // num_threads for t in range(num_threads + 1)]
    return [slice(*pair) for pair in zip(bounds, bounds[1:])]


def _in_threads(work: Callable[[int], None], num_calls: int) -> None:
    """Call ``work`` with 0, 1 ... ``num_calls`` - 1, on the threads that PyTorch has.

    Threads of our own would wait for a core: PyTorch's keep theirs busy for milliseconds after each
    operator, in case another one comes.
    """
    numbers, errors = iter(range(num_calls)), []

    def share(_) -> None:
        try:
            for number in numbers:
                work(number)
        except BaseException as error:  # Ctrl-C too: nothing may leave through foreign code
            errors.append(error)

    parallel = _openmp_parallel() if num_calls > 1 else None
    if parallel is None:
        share(None)
    else:
        parallel(_OPENMP_FUNCTION(share), None, num_calls, 0)
    if errors:
        raise errors[0]


_OPENMP_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.lru_cache(maxsize=None)
def _openmp_parallel() -> Optional[Callable]:
    """Entry to a parallel region of the OpenMP that PyTorch has loaded; None if it has none.

    Every OpenMP on Linux offers it under GNU's name.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, TypeError):  # no such name, or no names of the process at all
        return None
    parallel.argtypes = [_OPENMP_FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
