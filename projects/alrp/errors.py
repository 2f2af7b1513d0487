"""Exceptions whose message says all: what went wrong and how to fix it."""

from __future__ import annotations

import sys
from typing import Callable


class UserError(ValueError):
    """A mistake in a config, dataset or checkpoint that its owner can mend.

    Command-line entries print the message without a traceback and exit with a non-zero status;
    library callers catch it as a ``ValueError``.
    """


class NoSpaceError(UserError):
    """A file cannot be written because the disk is full or the quota used up; free space helps."""


def exit_status(command: Callable[..., object], *args, mistake: int = 1) -> int:
    """Run a command; a mistake of its user, or Ctrl-C, becomes one line on stderr.

    Args:
        command: what the command does, as a function of ``args``.
        mistake: the status after a :class:`UserError`.

    Returns:
        int: 0, ``mistake``, or 130 after Ctrl-C.
    """
    try:
        command(*args)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return mistake
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130
    return 0
