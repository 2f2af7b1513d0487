"""Which failures of a run are known, and what is said of them."""

from __future__ import annotations

import errno
import logging
import pytest

from alrp.engine.failures import explain, one_message
from alrp.errors import UserError

WORKER = "DataLoader worker (pid 12) is killed by signal: Killed. "


@pytest.mark.parametrize(
    "error, message, from_outside",
    [
        (UserError("wrong key"), "wrong key", False),
        (FloatingPointError("Loss became NaN"), "Loss became NaN", False),
        (RuntimeError(WORKER), "a loader worker was killed (Killed; out of memory?)", True),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            "a loader worker was killed (out of memory?)",
            True,
        ),
        (OSError(errno.ENOSPC, "No space left", "/x/log"), "the disk is full (/x/log)", True),
        (OSError(errno.EDQUOT, "Quota"), "your disk quota is used up", True),
        (UserError("x cannot be written: the disk is full; free it"), "x cannot be written", True),
        (RuntimeError("[x/pair.cc:5] Connection closed by peer [::1]:5"), "the connection", True),
    ],
)
def test_known_failures_have_one_message(error, message, from_outside):
    failure = explain(error)
    assert failure.message.startswith(message) and failure.from_outside is from_outside


@pytest.mark.parametrize("error", [KeyError("a"), OSError(errno.EIO, "x"), RuntimeError("shape")])
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
    assert explain(chained(full, ValueError("closed"), False)).message.startswith("the disk")
    assert explain(chained(full, UserError("no room for x"), True)).message == "no room for x"


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
