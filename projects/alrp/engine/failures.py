"""Failures that a command reports by one message; all others keep their traceback."""

from __future__ import annotations

import errno
import logging
import re
import sys
import traceback
from contextlib import contextmanager
from typing import Iterator, NamedTuple
import torch.distributed as dist

from ..errors import NoSpaceError, UserError
from ..files import NO_SPACE
from ..losses.inputs import NonFiniteError

_WORKER_DIED = re.compile(
    r"DataLoader worker \(pid.*?\) (?:is killed by signal: ([^.]*)|exited unexpectedly)"
)
_CONNECTION_LOST = re.compile(
    r"Connection (?:closed|reset|refused)|Broken pipe|failed to connect|store->|ncclRemoteError"
)
# Gloo raises plain RuntimeErrors, which begin with a place in its source.
_FROM_GLOO = re.compile(r"\[\S+\.cc:\d+\] ")
# Other FloatingPointErrors, as of NumPy, are bugs.
_DIVERGED = re.compile(r"Loss became infinite or NaN|Training has diverged")  # of Detectron2
# Of a GPU: PyTorch's allocator, and CUDA itself.
_NO_MEMORY = re.compile(r"CUDA (?:error: )?out of memory")
_NO_CPU_MEMORY = (
    "this machine has too little memory; lower SOLVER.IMS_PER_BATCH, or set "
    "SOLVER.MICRO_BATCH_SIZE 1"
)
_NO_CPU_MEMORY_TO_EVALUATE = (
    "this machine has too little memory; take fewer loader workers, or smaller images"
)
# What PyTorch says of want on this machine, and what is said of it here; the first that fits.
_WANTS = (
    (
        re.compile(r"unable to [^\n]*</?torch_\d[^\n]*Too many open files|0 items of ancdata"),
        "loader workers hold too many files open; raise the limit by ulimit -n, or take fewer "
        "loader workers",
    ),
    # Loader workers hand tensors over in shared memory, of which containers have little.
    (
        re.compile(r"killed by signal: Bus error|unable to \w+[^\n]*</?torch_\d"),
        "a loader worker found too little shared memory (/dev/shm); give a container more by "
        "--shm-size, or take fewer loader workers",
    ),
    (
        re.compile(r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"),
        _NO_CPU_MEMORY,
    ),
)
# Errors of a disk or a network drive, if a file is named; a missing file may be a bug.
_OF_THE_DISK = {errno.EACCES, errno.EIO, errno.EPERM, errno.EROFS, errno.ESTALE}

_LOADER = "torch.utils.data.dataloader"
CONNECTION_LOST = "the connection to another process was lost"
# What alrp.losses.processes says where GLOBAL_RANKING meets what another process got.
_STOPPED = re.compile(r"process \d+ of the group stopped")


class Failure(NamedTuple):
    """What ended a run.

    Attributes:
        message: what happened and, where the user can do something, how to mend it.
        from_outside: whether config and data may be right, so that the run can be resumed.
    """

    message: str
    from_outside: bool = False

    def in_evaluation(self) -> Failure:
        """The same with advice for a run that does not train."""
        if self.message != _NO_CPU_MEMORY:
            return self
        return self._replace(message=_NO_CPU_MEMORY_TO_EVALUATE)


def is_of_another(failure: Failure | None) -> bool:
    """Whether a process failed because another one did, which has more to say."""
    if failure is None:
        return False
    return failure.message == CONNECTION_LOST or bool(_STOPPED.match(failure.message))


def explain(error: BaseException) -> Failure | None:
    """The known failure that an exception stands for; None for any other.

    An error of cleaning up after another one came of it: the first known one counts. An error of
    another kind that was raised while a known one was handled is a bug, and stays unknown.
    """
    known, current = None, error
    while current is not None:
        known = _explain_alone(current) or known
        is_explained = current.__cause__ is not None or current.__suppress_context__
        current = None if is_explained or not _may_be_of_cleanup(current) else current.__context__
    return known


def _may_be_of_cleanup(error: BaseException) -> bool:
    """Whether closing files, logs and connections after a failure raises such an error."""
    is_closed_file = type(error) is ValueError and "closed file" in str(error)
    # Of the subclasses of RuntimeError, some are bugs, such as RecursionError.
    is_of_runtime = type(error) is RuntimeError or isinstance(error, dist.DistError)
    return isinstance(error, (UserError, OSError)) or is_of_runtime or is_closed_file


def _explain_alone(error: BaseException) -> Failure | None:
    text = str(error)
    if isinstance(error, (UserError, NonFiniteError)):
        message = _last_message(text) or text
        return Failure(message, from_outside=isinstance(error, NoSpaceError))
    if isinstance(error, FloatingPointError) and _DIVERGED.search(text):
        return Failure(text)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f" ({error.filename})" if error.filename else ""
        return Failure(f"{NO_SPACE[error.errno]}{where}; free space there", from_outside=True)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK and error.filename:
        message = f"{error.filename} cannot be read or written: {error.strerror}; look at the disk "
        return Failure(f"{message}and the rights of the file", from_outside=True)
    if isinstance(error, MemoryError):
        return Failure(_NO_CPU_MEMORY, from_outside=True)
    if isinstance(error, RuntimeError):
        want = next((message for pattern, message in _WANTS if pattern.search(text)), None)
        if want:
            return Failure(want, from_outside=True)
        worker = _WORKER_DIED.search(text)
        if worker:
            how = f"{worker[1]}; " if worker[1] else ""
            return Failure(f"a loader worker was killed ({how}out of memory?)", from_outside=True)
        if _NO_MEMORY.match(text):
            message = f"the GPU has too little memory. PyTorch says: {text.splitlines()[0]}"
            return Failure(message, from_outside=True)
        is_of_processes = isinstance(error, dist.DistError) or _FROM_GLOO.match(text)
        if is_of_processes and _CONNECTION_LOST.search(text):
            return Failure(CONNECTION_LOST, from_outside=True)
    if isinstance(error, (ConnectionError, EOFError)) and _is_raised_in_loader(error):
        return Failure("a loader worker was killed (out of memory?)", from_outside=True)
    return None


def _is_raised_in_loader(error: BaseException) -> bool:
    """Whether a data loader was being read, whose worker may end while it hands over a tensor."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == _LOADER for frame, _ in frames)


def _last_message(text: str) -> str | None:
    """Message of the last user's error in a printed traceback; None if there is none.

    This is all that is known of an exception in a worker process of a data loader.
    """
    _, found, message = text.rpartition(f"\n{UserError.__module__}.{UserError.__qualname__}: ")
    return message.strip() if found else None


@contextmanager
def one_message() -> Iterator[None]:
    """Keep the log from printing tracebacks of what :func:`explain` knows, which is told later.

    A log file that cannot be written any more, as on a full disk, is passed over; other errors of
    logging, such as a wrong format, are printed as ever.
    """

    def is_news(record: logging.LogRecord) -> bool:
        return not record.exc_info or explain(record.exc_info[1]) is None

    def handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            print_error(handler, record)

    logger = logging.getLogger("detectron2.engine.train_loop")
    print_error = logging.Handler.handleError
    logger.addFilter(is_news)
    logging.Handler.handleError = handle_error
    try:
        yield
    finally:
        logging.Handler.handleError = print_error
        logger.removeFilter(is_news)
