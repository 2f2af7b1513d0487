"""Exceptions whose message says all: what went wrong and how to fix it."""


class UserError(ValueError):
    """A mistake in a config, dataset or checkpoint that its owner can mend.

    Command-line entries print the message without a traceback and exit with a non-zero status;
    library callers catch it as a ``ValueError``.
    """


class NoSpaceError(UserError):
    """A file cannot be written because the disk is full or the quota used up; free space helps."""
