"""Failures that a command reports by one message; all others keep their traceback."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from typing import Iterator, NamedTuple

from ..errors import UserError
from ..files import NO_SPACE

_WORKER_DIED = re.compile(
    r"DataLoader worker \(pid.*?\) (?:is killed by signal: ([^.]*)|exited unexpectedly)"
)
_CONNECTION_LOST = re.compile(
    r"Connection (?:closed|reset|refused)|Broken pipe|failed to connect|store->"
)


class Failure(NamedTuple):
    """What ended a run.

    Attributes:
        message: what happened and, where the user can do something, how to mend it.
        from_outside: whether config and data may be right, so that the run can be resumed.
    """

    message: str
    from_outside: bool = False


def explain(error: BaseException) -> Failure | None:
    """The known failure that an exception stands for; None for any other.

    Of exceptions that were raised while others were handled, the first known one counts: the others
    came of it.
    """
    known, current = None, error
    while current is not None:
        known = _explain_alone(current) or known
        is_explained = current.__cause__ is not None or current.__suppress_context__
        current = None if is_explained else current.__context__
    return known


def _explain_alone(error: BaseException) -> Failure | None:
    text = str(error)
    if isinstance(error, (UserError, FloatingPointError)):
        message = last_message(text) or text
        return Failure(message, from_outside=any(what in message for what in NO_SPACE.values()))
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f" ({error.filename})" if error.filename else ""
        return Failure(f"{NO_SPACE[error.errno]}{where}; free space there", from_outside=True)
    if isinstance(error, RuntimeError):
        worker = _WORKER_DIED.search(text)
        if worker:
            how = f"{worker[1]}; " if worker[1] else ""
            return Failure(f"a loader worker was killed ({how}out of memory?)", from_outside=True)
        if _CONNECTION_LOST.search(text):
            return Failure("the connection to another process was lost", from_outside=True)
    return None


def last_message(text: str) -> str | None:
    """Message of the last user's error in a printed traceback; None if there is none.

    This is all that is known of an exception in a worker process of a data loader.
    """
    for kind in (f"{UserError.__module__}.{UserError.__qualname__}", "FloatingPointError"):
        _, found, message = text.rpartition(f"\n{kind}: ")
        if found:
            return message.strip()
    return None


@contextmanager
def one_message() -> Iterator[None]:
    """Keep the log from printing tracebacks of what :func:`explain` knows, which is told later.

    A log file that cannot be written any more, as on a full disk, is passed over.
    """

    def is_news(record: logging.LogRecord) -> bool:
        return not record.exc_info or explain(record.exc_info[1]) is None

    logger = logging.getLogger("detectron2.engine.train_loop")
    raise_exceptions = logging.raiseExceptions
    logger.addFilter(is_news)
    logging.raiseExceptions = False
    try:
        yield
    finally:
        logging.raiseExceptions = raise_exceptions
        logger.removeFilter(is_news)
