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


def exit_status(command: Callable[..., None], *args) -> int:
    """Run a command; a mistake of its user becomes one line on stderr.

    Args:
        command: what the command does, as a function of ``args``.

    Returns:
        int: 0, or 1 if ``command`` raised :class:`UserError`.
    """
    try:
        command(*args)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0
