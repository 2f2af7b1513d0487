"""How the work on the CPU is compiled and shared among threads."""

from __future__ import annotations

import numpy as np
import subprocess
import sys
import threading
import numba
import pytest
import torch
from torch.testing import assert_close

from alrp.losses import ap_loss
from alrp.losses.backends import compiled, kernels, operators


@pytest.fixture(params=["PyTorch's threads", "this thread"])
def threads(request, monkeypatch):
    """Many threads even for small inputs, with PyTorch's OpenMP and without."""
    monkeypatch.setattr(compiled, "_ENTRIES_PER_SHARE", 100)
    if request.param == "this thread":
        monkeypatch.setattr(compiled, "_openmp_parallel", lambda: None)
    elif compiled._openmp_parallel() is None:
        pytest.skip("this PyTorch has no OpenMP")


def test_work_is_done_once_for_every_number(threads):
    done = []
    compiled._in_threads(done.append, 7)
    assert sorted(done) == list(range(7))


def test_two_threads_work_at_the_same_time():
    if compiled._openmp_parallel() is None or torch.get_num_threads() < 2:
        pytest.skip("needs OpenMP and two threads")
    barrier = threading.Barrier(2, timeout=60)  # one thread alone would wait for the other
    compiled._in_threads(lambda _: barrier.wait(), 2)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, IndexError, RuntimeError])
def test_what_goes_wrong_in_a_thread_is_raised(threads, kind):
    def fail(number):
        raise kind(f"in {number}")

    with pytest.raises(kind, match="in "):
        compiled._in_threads(fail, 3)


THREADS_REMAIN = """
import os, torch
from alrp.losses.backends import compiled
torch.set_num_threads(4)
numbers = []
for _ in range(3):
    torch.ones(10**6).add_(1)
    numbers.append(set(os.listdir("/proc/self/task")))
    compiled._in_threads(lambda _: None, 2)
assert len(numbers[0]) >= 4, numbers
assert numbers[0] == numbers[1] == numbers[2], numbers
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_few_calls_leave_pytorch_its_threads():
    """A smaller team would end threads, and the next operator would start new ones."""
    done = subprocess.run([sys.executable, "-c", THREADS_REMAIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("num_entries", [0, 1, 99, 100, 250, 1001, 10**6])
@pytest.mark.parametrize("num_threads", [1, 5, 40])
def test_slices_cover_all_entries_and_use_no_more_threads_than_pytorch(
    num_entries, num_threads, monkeypatch
):
    monkeypatch.setattr(compiled, "_ENTRIES_PER_SHARE", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    slices = compiled._slices_for_threads(num_entries)
    assert np.concatenate([np.arange(s.start, s.stop) for s in slices]).tolist() == list(
        range(num_entries)
    )
    assert len(slices) == min(num_threads, 16, max(1, num_entries // 100))


@pytest.mark.parametrize(
    "targets_dtype", [torch.int8, torch.int64, torch.uint8, torch.bool], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_survey_finds_positives_and_counts_what_is_not_finite(rng, threads, dtype, targets_dtype):
    logits = torch.as_tensor(rng.standard_normal(1000), dtype=dtype)
    targets = torch.as_tensor(rng.choice([0, 1, 2, 3], size=1000)).to(targets_dtype)
    for value in (torch.nan, torch.inf, -torch.inf):
        logits[torch.as_tensor(rng.choice(1000, 20))] = value
    errors = torch.tensor([0.0, torch.nan, 1.0, torch.inf])
    for survey in (compiled.survey, operators.survey):
        found = survey(logits, targets, errors)
        assert_close(found.positives, (targets == 1).nonzero().squeeze(1), rtol=0, atol=0)
        assert found.num_bad_logits == int((~logits.isfinite() & (targets <= 1)).sum()) > 0
        assert found.num_bad_values == 2
    finite = compiled.survey(logits.nan_to_num(0, 0, 0), targets, errors[:0])
    assert finite[2:] == operators.survey(logits.nan_to_num(0, 0, 0), targets, errors[:0])[2:]
    assert finite.num_bad_logits == finite.num_bad_values == 0 < finite.largest


def test_any_number_of_threads_gives_one_loss(rng, threads):
    logits = torch.as_tensor(rng.standard_normal(5000))
    targets = torch.as_tensor(rng.choice([0, 1, -1], p=[0.9, 0.05, 0.05], size=5000))
    results = []
    num_threads = torch.get_num_threads()
    for number in (1, 3):
        torch.set_num_threads(number)
        try:
            leaf = logits.clone().requires_grad_()
            loss = ap_loss(leaf, targets)
            loss.backward()
        finally:
            torch.set_num_threads(num_threads)
        results.append((loss.detach(), leaf.grad))
    assert_close(*results, rtol=1e-12, atol=1e-15)


def test_loops_are_compiled_where_no_folder_can_keep_them(monkeypatch):
    njit = numba.njit

    def without_folder(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", without_folder)
    assert kernels._jit(lambda x: 2 * x)(21) == 42


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), EOFError()], ids=repr)
def test_loops_are_compiled_anew_where_they_cannot_be_kept_or_read(monkeypatch, error):
    njit, calls = numba.njit, []

    def full_disk(cache=False, **options):
        def fail(*args):
            calls.append(args)
            raise error

        return (lambda function: fail) if cache else njit(**options)

    monkeypatch.setattr(numba, "njit", full_disk)
    double = kernels._jit(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        assert double(21) == 42
    assert double(4) == 8 and calls == [(21,)]


def test_several_threads_may_find_that_loops_cannot_be_read(monkeypatch):
    njit, both = numba.njit, threading.Barrier(2, timeout=60)

    def unreadable(cache=False, **options):
        def fail(*args):
            both.wait()
            raise EOFError

        return (lambda function: fail) if cache else njit(**options)

    monkeypatch.setattr(numba, "njit", unreadable)
    double, results = kernels._jit(lambda x: 2 * x), []
    threads = [threading.Thread(target=lambda: results.append(double(21))) for _ in range(2)]
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [42, 42]


def test_an_error_of_the_loops_themselves_is_not_hidden():
    first = kernels._jit(lambda values: values.no_such_attribute)
    with pytest.warns(UserWarning), pytest.raises(numba.TypingError, match="no_such_attribute"):
        first(np.zeros(1))
    with pytest.raises(numba.TypingError):
        first(np.zeros(1))


def test_ctrl_c_within_numba_is_still_ctrl_c(monkeypatch):
    def interrupted(function):
        def call():
            raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

        return call

    monkeypatch.setattr(numba, "njit", lambda **options: interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernels._jit(print)()


def test_ctrl_c_before_the_first_line_of_a_share_is_not_lost(monkeypatch):
    """ctypes can but print what is raised there; all work is done by the other threads."""

    def only_another_thread(share, *args):
        thread = threading.Thread(target=share, args=(None,))
        thread.start()
        thread.join()

    monkeypatch.setattr(compiled, "_openmp_parallel", lambda: only_another_thread)
    monkeypatch.setattr(compiled, "_OPENMP_FUNCTION", lambda share: share)
    with pytest.raises(KeyboardInterrupt):
        compiled._in_threads(lambda _: None, 2)


def test_the_default_device_does_not_matter(rng):
    logits = torch.as_tensor(rng.standard_normal(100))
    targets = torch.as_tensor(rng.choice([0, 1], size=100))
    expected = ap_loss(logits, targets)
    leaf = logits.clone().requires_grad_()
    with torch.device("meta"):
        loss = ap_loss(leaf, targets)
        loss.backward()
    assert_close(loss.detach(), expected, rtol=0, atol=0)
    assert leaf.grad.device.type == "cpu" and leaf.grad.any()
