"""Which failures of a run are known, and what is said of them."""

from __future__ import annotations

import errno
import io
import logging
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

from alrp.config import load_config
from alrp.engine.failures import CONNECTION_LOST, Failure, explain, is_of_another, one_message
from alrp.engine.lazy import _LazyTrainer
from alrp.errors import NoSpaceError, UserError
from alrp.losses.inputs import NonFiniteError
from alrp.losses.processes import SharedPositives

WORKER = "DataLoader worker (pid 12) is killed by signal: Killed. "


@pytest.mark.parametrize(
    "error, message, from_outside",
    [
        (UserError("wrong key"), "wrong key", False),
        (NonFiniteError("logits: 1 of 4"), "logits: 1 of 4", False),
        (FloatingPointError("Loss became infinite or NaN at iteration=1!"), "Loss became", False),
        (FloatingPointError("Inf/NaN. Training has diverged."), "Inf/NaN. Training", False),
        (RuntimeError(WORKER), "a loader worker was killed (Killed; out of memory?)", True),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            "a loader worker was killed (out of memory?)",
            True,
        ),
        (
            RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. It is"),
            "a loader worker found too little shared memory",
            True,
        ),
        (
            RuntimeError("Caught RuntimeError\nunable to write to file </torch_12_3>: No space"),
            "a loader worker found too little shared memory",
            True,
        ),
        (
            RuntimeError("unable to open shared memory object </torch_1_2>: Too many open files"),
            "loader workers hold too many files open",
            True,
        ),
        (
            RuntimeError("received 0 items of ancdata"),
            "loader workers hold too many files open",
            True,
        ),
        (
            RuntimeError("[enforce fail at x.cpp:1] DefaultCPUAllocator: can't allocate memory: "),
            "this machine has too little memory; lower SOLVER.IMS_PER_BATCH",
            True,
        ),
        (MemoryError(), "this machine has too little memory", True),
        (PermissionError(errno.EACCES, "Denied", "/x"), "/x cannot be read or written: D", True),
        (OSError(errno.ESTALE, "Stale file handle", "/x"), "/x cannot be read or written", True),
        (OSError(errno.ENOSPC, "No space left", "/x/log"), "the disk is full (/x/log)", True),
        (OSError(errno.EDQUOT, "Quota"), "your disk quota is used up", True),
        (NoSpaceError("x cannot be written: the disk is full"), "x cannot be written", True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to"), "the GPU has too", True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel"), "the GPU has too", True),
        (UserError("the disk is full of ghosts"), "the disk is full of ghosts", False),
        (dist.DistBackendError("store->get('0:1') timed out"), "the connection", True),
        (dist.DistBackendError("NCCL error: ncclRemoteError: A call"), "the connection", True),
        (RuntimeError("[x/pair.cc:5] Connection closed by peer [::1]:5"), "the connection", True),
    ],
)
def test_known_failures_have_one_message(error, message, from_outside):
    failure = explain(error)
    assert failure.message.startswith(message) and failure.from_outside is from_outside


def test_too_little_memory_to_evaluate_brings_no_keys_of_a_training():
    advice = explain(MemoryError()).in_evaluation().message
    assert advice.startswith("this machine has too little memory") and "SOLVER" not in advice
    other = Failure("the disk is full", from_outside=True)
    assert other.in_evaluation() == other


def test_of_several_failures_some_came_of_another_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(NonFiniteError) as stopped:  # a process that calls stop() sends -1
            SharedPositives(-1, torch.device("cpu"), dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    assert is_of_another(explain(stopped.value))
    assert is_of_another(Failure(CONNECTION_LOST, from_outside=True))
    assert not is_of_another(Failure("logits: 1 of 4")) and not is_of_another(None)


class _FillsTheMemory(nn.Module):
    def forward(self, batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize(
    "size, message",
    [
        (0, "9 image(s), of which 9 at a time pass through the network; set .*_BATCH_SIZE 4, "),
        (20, "9 image(s), of which 9 at a time pass through the network; set .*_BATCH_SIZE 4, "),
        (3, "9 image(s), of which 3 at a time pass through the network; set .*_BATCH_SIZE 1, "),
        (1, "9 image(s), of which 1 at a time pass through the network; take smaller images"),
    ],
)
def test_too_little_memory_of_a_gpu_has_a_remedy(size, message):
    cfg = load_config("")
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MICRO_BATCH_SIZE = 9, size
    trainer = _LazyTrainer(_FillsTheMemory(), [[]], None)
    trainer.cfg = cfg
    with pytest.raises(UserError, match=message.replace("(s)", r"\(s\)")) as raised:
        trainer.run_step()
    assert str(raised.value).endswith("PyTorch says: CUDA out of memory. Tried to allocate 2 GiB.")


class _LosesItsWorker(Dataset):
    """The connection to a worker breaks while a batch is read, as when it is killed."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_a_connection_lost_while_a_loader_is_read_means_that_its_worker_ended():
    with pytest.raises(ConnectionResetError) as caught:
        next(iter(DataLoader(_LosesItsWorker())))
    assert explain(caught.value).message == "a loader worker was killed (out of memory?)"
    assert explain(ConnectionResetError(errno.ECONNRESET, "elsewhere")) is None


def of_numpy():
    with np.errstate(under="raise"), pytest.raises(FloatingPointError) as caught:
        np.float64(1e-200) * np.float64(1e-200)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        OSError(errno.EIO, "x"),
        RuntimeError("shape"),
        RuntimeError("self.store->size is 3"),
        RuntimeError("Connection refused by the annotation server"),
        of_numpy(),
    ],
    ids=repr,
)
def test_other_errors_keep_their_traceback(error):
    assert explain(error) is None


def test_the_message_of_a_loader_worker_is_taken_out_of_its_traceback():
    text = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback ...\n"
    failure = explain(UserError(text + "alrp.errors.UserError: a.png: cut short\n"))
    assert failure.message == "a.png: cut short"


def chained(first, second, explicitly):
    try:
        try:
            raise first
        except Exception as error:
            if explicitly:
                raise second from error
            raise second
    except Exception as error:
        return error


def test_what_failed_first_counts_unless_it_was_explained():
    full = OSError(errno.ENOSPC, "No space left")
    for came_of_it in (ValueError("write to closed file"), OSError("x"), RuntimeError("x")):
        assert explain(chained(full, came_of_it, False)).message.startswith("the disk")
    assert explain(chained(full, UserError("no room for x"), True)).message == "no room for x"


@pytest.mark.parametrize("bug", [KeyError("a"), TypeError("a"), ValueError("a"), RecursionError()])
def test_a_bug_in_the_handling_of_a_known_failure_keeps_its_traceback(bug):
    assert explain(chained(UserError("a.png is cut short"), bug, False)) is None


def test_only_logs_that_cannot_be_written_are_passed_over(capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    logger = logging.Logger("alrp.test")
    logger.addHandler(logging.StreamHandler(Full()))
    with one_message():
        logger.warning("written nowhere")
        assert capsys.readouterr().err == ""
        logger.warning("%d", "no number")
    assert "TypeError" in capsys.readouterr().err
    logger.warning("written nowhere")
    assert "No space left" in capsys.readouterr().err


def test_a_known_failure_is_not_logged_with_a_traceback(caplog):
    logger = logging.getLogger("detectron2.engine.train_loop")
    with one_message():
        for error in (UserError("mine"), KeyError("unknown")):
            try:
                raise error
            except ValueError:
                logger.exception("Exception during training:")
            except KeyError:
                logger.exception("Exception during training:")
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]
