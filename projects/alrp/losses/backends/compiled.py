"""The backend for the CPU: loops compiled by numba.

Loops over many entries run on PyTorch's own threads. Where its OpenMP cannot be reached, as on
systems other than Linux, they run in the calling thread alone.

Shape shorthand as in :mod:`alrp.losses.backends.interface`; B buckets.
"""

from __future__ import annotations

import ctypes
import functools
import math
import numpy as np
import sys
import threading
from typing import Callable
import torch
from torch import Tensor

from ..reductions import largest_magnitude, num_not_finite, num_outside
from . import kernels
from .interface import CellSumMatrix, LocatedKeys, SortedPositives, Survey, cell_dtype
from .operators import in_order

# Few knots per bucket, so that a key is found at once; yet the table must fit the level 2 cache.
_BUCKETS_PER_KNOT = 16
_MIN_BUCKETS, _MAX_BUCKETS = 1 << 12, 1 << 17
_KEYS_PER_BUCKET = 4  # with fewer, filling the table costs more than it saves
# Least size of a thread's share: each share has its own sums to clear and to add up.
_ENTRIES_PER_SHARE = 1 << 16
_MAX_SHARES = 16
# Unused float64 numbers between the sums of two threads, two cache lines wide: threads that write
# to one line, or to neighbours that are fetched together, slow each other down.
_PADDING = 16

# On the CPU whatever torch.set_default_device says.
_empty = functools.partial(torch.empty, device="cpu")
_OPENMP_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def survey(logits: Tensor, targets: Tensor, values: Tensor, most: float = math.inf) -> Survey:
    """See :class:`Survey`. Positives are ascending."""
    slices = _slices_for_threads(len(logits))
    found = [None] * len(slices)

    def work(t: int, *parts: np.ndarray) -> None:
        found[t] = kernels.survey(*parts, slices[t].start)

    _for_slices(work, slices, logits, targets)
    indices, num_bad_logits = zip(*found)
    positives = torch.from_numpy(np.concatenate(indices))
    pos_logits = logits.index_select(0, positives)
    largest = largest_magnitude(pos_logits).item()
    bad_values = int(num_not_finite(values)), int(num_outside(values, most))
    return Survey(positives, pos_logits, sum(num_bad_logits), *bad_values, largest)


def sort(logits: Tensor, values: Tensor, positives: Tensor) -> SortedPositives:
    """See :class:`SortedPositives`; the positives must be ascending."""
    descending = torch.from_numpy(kernels.descending_order(_array(logits.double())))
    return in_order(descending, logits, values, positives)


class CompiledMatrix(CellSumMatrix):
    """A :class:`StepMatrix` on the CPU; each sum in one pass over its operands."""

    def __init__(self, queries: Tensor, delta: float) -> None:
        self.queries, self._delta = queries.double(), float(delta)
        merged = kernels.merge(_array(self.queries), self._delta)
        self._edges, self._is_lower, self._query_cells = merged

    def locate(self, logits: Tensor, targets: Tensor) -> LocatedKeys:
        num_cells = len(self._edges) - 1
        # Large arrays are PyTorch's, so that its profiler counts them.
        cells = _empty(len(logits), dtype=cell_dtype(num_cells))
        slices = _slices_for_threads(len(logits))
        sums = _empty(len(slices), 2, num_cells + _PADDING, dtype=torch.float64).zero_()
        sum_arrays, table = _array(sums), self._bucket_table(len(logits))

        def work(t: int, keys: np.ndarray, marks: np.ndarray, out: np.ndarray) -> None:
            kernels.locate(keys, marks, self._edges, *table, out, *sum_arrays[t])

        _for_slices(work, slices, logits, targets, cells)
        return LocatedKeys(cells, sums.sum(0)[:, :num_cells])

    def _bucket_table(self, num_keys: int) -> tuple[float, np.ndarray]:
        """A table that finds the cell of a key almost without a search.

        Buckets of equal width cover the range of the knots. The table holds the number of knots
        before each bucket, so a key is compared only with the knots of its own bucket: mostly none
        or one.

        Returns:
            tuple: buckets per unit of a logit; (B + 1,) number of knots before each bucket.
        """
        num_buckets = max(_BUCKETS_PER_KNOT * len(self._edges), _MIN_BUCKETS)
        num_buckets = min(num_buckets, _MAX_BUCKETS, num_keys // _KEYS_PER_BUCKET + 1)
        density = num_buckets / (self._edges[-2] - self._edges[1])
        starts = _array(_empty(num_buckets + 1, dtype=cell_dtype(len(self._edges) - 1)))
        kernels.count_knots(self._edges, density, starts)
        return density, starts

    def rmatvec(self, weights: Tensor, cells: Tensor, logits: Tensor) -> Tensor:
        shape = self._edges, self._is_lower, self._delta
        profile = kernels.column_profile(_array(weights), *shape)
        result = _empty(len(logits), dtype=logits.dtype)

        def work(t: int, keys: np.ndarray, cells_of_keys: np.ndarray, out: np.ndarray) -> None:
            kernels.evaluate(keys, cells_of_keys, self._edges, profile, out)

        _for_slices(work, _slices_for_threads(len(logits)), logits, cells, result)
        return result

    def _sum_queries(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        queries = _array(self.queries)
        sums = kernels.sum_queries(queries, _array(weights), self._query_cells, self._edges)
        mass, moment = map(torch.from_numpy, sums)
        return mass, moment

    def _row_sums(self, mass: Tensor, moment: Tensor) -> Tensor:
        shape = self._edges, self._is_lower, self._delta
        return torch.from_numpy(kernels.row_sums(_array(mass), _array(moment), *shape))


def sums_below(weights: Tensor, ranks: Tensor, limits: Tensor, cuts: Tensor) -> Tensor:
    """See ``SumsBelow`` in :mod:`.sorting`."""
    arrays = map(_array, (weights, ranks, limits, cuts))
    return torch.from_numpy(kernels.sums_below(*arrays))


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory where it is contiguous, else a copy."""
    return tensor.detach().contiguous().numpy()


def _slices_for_threads(num_entries: int) -> list[slice]:
    """Equal shares of all entries, one for each thread that is worth its start."""
    most = min(torch.get_num_threads(), _MAX_SHARES)
    num_shares = max(1, min(most, num_entries // _ENTRIES_PER_SHARE))
    bounds = [num_entries * t // num_shares for t in range(num_shares + 1)]
    return [slice(*pair) for pair in zip(bounds, bounds[1:])]


def _for_slices(work: Callable, slices: list[slice], *tensors: Tensor) -> None:
    """Call ``work(t, *parts)`` for each slice t in threads, with that slice of all (S,) tensors.

    The parts of contiguous tensors are views, so ``work`` can write to them.
    """
    arrays = [_array(tensor) for tensor in tensors]
    _in_threads(lambda t: work(t, *(array[slices[t]] for array in arrays)), len(slices))


def _in_threads(work: Callable[[int], None], num_calls: int) -> None:
    """Call ``work(0)`` to ``work(num_calls - 1)`` on PyTorch's OpenMP threads.

    Threads of our own would wait for a core: PyTorch's keep theirs busy for milliseconds after each
    operator, in case another one comes.

    Why not ``numba.prange``: its thread pools end the whole process in ordinary trainings, the
    "workqueue" one when two Python threads call a loss at once, the "omp" one when a process forks
    afterwards. And the latter loads a second OpenMP beside PyTorch's: with two threads and focal
    loss in between, aLRP took 1.3 times as long at 7e6 logits, 1.7 times at 7e5 (medians of 15 and
    41 calls in turns, P = 1600, busy machine).
    """
    numbers, errors, finished = list(range(num_calls)), [], set()

    def take() -> int | None:
        try:
            return numbers.pop()
        except IndexError:
            return None

    def share(_) -> None:
        try:
            for number in iter(take, None):
                work(number)
            finished.add(threading.get_ident())
        except BaseException as error:  # Ctrl-C too: no exception may cross OpenMP's C code
            errors.append(error)

    parallel = _openmp_parallel() if num_calls > 1 else None
    if parallel is None:
        share(None)
    else:
        # 0 means as many threads as PyTorch uses. Another number would stop or start threads, here
        # and again in PyTorch's next operator.
        parallel(_OPENMP_FUNCTION(share), None, 0, 0)
    if errors:
        raise errors[0]
    if threading.get_ident() not in finished:
        raise KeyboardInterrupt  # Ctrl-C came before share() could catch it; ctypes only prints it


@functools.lru_cache(maxsize=None)
def _openmp_parallel() -> Callable | None:
    """The function that starts a parallel region in PyTorch's OpenMP; None if it is not found.

    Every OpenMP on Linux (GNU, LLVM, Intel) has it under GNU's name.
    """
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        return None
    parallel.argtypes = [_OPENMP_FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
