"""The one exception that means "the input is wrong, and its message says how to fix it"."""


class UserError(ValueError):
    """A mistake in a config, dataset or checkpoint that its owner can mend.

    Command-line entries print the message without a traceback and exit with a non-zero status;
    library callers catch it as a ``ValueError``.
    """
