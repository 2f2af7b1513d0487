"""Files that appear whole or not at all, folders to write to, and JSON: each with one message."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import secrets
from contextlib import contextmanager, suppress
from typing import Any, Iterator

from .errors import NoSpaceError, UserError

# Name of a file that is being written; no file of a user is called so.
_TEMPORARY = re.compile(r"\.alrp-[0-9a-f]{16}\.tmp")

NO_SPACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your disk quota is used up"}
# Files that are often taken for others: first bytes, what they tell, and the way out.
_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip: unpack it by gunzip"),
    (b"PK\x03\x04", "a ZIP archive, to be unpacked, or a file of torch.save"),
    (b"\x80", "a Python pickle, which can run code: export it as JSON"),
    (b"\xff\xfe", "text in UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16: save it as UTF-8"),
    (b"<", "HTML or XML, such as the page of a failed download"),
    (b"ftyphe", "a HEIC photograph: convert it to JPEG"),
    (b"ftypmif1", "a HEIC photograph: convert it to JPEG"),
)
_LONG_INTEGER = re.compile(r"\d{4301,}")  # more digits than Python converts
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Every escape of a string; the group is half of a surrogate pair without the other half.
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[io.BufferedWriter]:
    """A binary file to write; what was written replaces ``path`` when the block ends well.

    Readers see the old file or the whole new one, also after a crash. The content goes to a
    temporary file in the same folder, reaches the disk, and is renamed. If the block fails, the
    temporary file is removed and ``path`` stays as it was. A killed process leaves its temporary
    file behind; the next write to the folder removes it.

    Args:
        path: of a file, which need not exist, or of a link to one, which then stays a link.

    Raises:
        NoSpaceError: if the disk is full or the quota used up.
        UserError: if the file cannot be written otherwise, or something else has that name.
    """
    target = os.path.realpath(path)
    if _is_special(target):
        raise UserError(
            f"{path} cannot be written: it is no plain file, but a folder, a pipe or a device; "
            "name another file."
        )
    folder = os.path.dirname(target)
    raw = None
    try:
        _remove_leftovers(folder)
        raw = _new_temporary_file(folder)
        with io.BufferedWriter(raw, 2**20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(raw.name, target)
        _sync_folder(folder)
    except Exception as error:
        cause = raw.error if raw is not None and raw.error else error
        if not isinstance(cause, OSError):
            raise
        kind = NoSpaceError if cause.errno in NO_SPACE else UserError
        reason = NO_SPACE.get(cause.errno, cause.strerror or str(cause))
        fix = "free space there" if os.path.isdir(folder) else "make the folder first"
        raise kind(
            f"{path} cannot be written: {reason}; {fix} or choose another folder."
        ) from error
    finally:
        if raw is not None:
            with suppress(FileNotFoundError):  # renamed
                os.remove(raw.name)


def _is_special(path: str) -> bool:
    """Whether there is a folder, a pipe or a device of this name."""
    return os.path.exists(path) and not os.path.isfile(path)


class _TemporaryFile(io.FileIO):
    """A new file that is locked as long as its process lives, and remembers a failed write.

    PyTorch's writer reports a failed write as "unexpected pos", without the reason.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, "x")
        self.error: OSError | None = None
        with suppress(OSError):  # a file system without locks; there, leftovers stay
            fcntl.flock(self, fcntl.LOCK_EX)

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def is_in_its_folder(self) -> bool:
        """Whether the name still stands for this file."""
        try:
            return os.path.samestat(os.fstat(self.fileno()), os.stat(self.name))
        except FileNotFoundError:
            return False


def _new_temporary_file(folder: str) -> _TemporaryFile:
    while True:
        file = _TemporaryFile(os.path.join(folder, f".alrp-{secrets.token_hex(8)}.tmp"))
        # Before the file was locked, another writer could take it for a leftover and remove it.
        if file.is_in_its_folder():
            return file
        file.close()


def _sync_folder(folder: str) -> None:
    """Bring the names in a folder to the disk, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(folder: str) -> None:
    """Remove the temporary files of killed processes: nobody holds a lock on them."""
    for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, name)
        with suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if its writer lives
            os.remove(path)


def check_folder(path: str | os.PathLike, option: str) -> None:
    """Check that a folder is there or can be made, and written to; nothing is made here.

    Args:
        path: of the folder.
        option: that names it, such as "--output".

    Raises:
        UserError: if not.
    """
    present = os.path.abspath(path)
    while not os.path.exists(present):
        present = os.path.dirname(present)
    if not _is_writable_folder(present):
        raise UserError(
            f"{option}: {os.fspath(path)!r} cannot be written: {present} is no folder that you may "
            "write to; name another one."
        )


def check_new_file(path: str | os.PathLike, option: str) -> None:
    """Check that a file can be written, before the work whose result it is to hold.

    Args:
        path: of the file.
        option: that names it, such as "--output".

    Raises:
        UserError: if not.
    """
    target = os.path.realpath(path)
    if _is_special(target) or not _is_writable_folder(os.path.dirname(target)):
        raise UserError(
            f"{option}: {path} cannot be written; name a file in a folder that exists and that you "
            "may write to."
        )


def _is_writable_folder(path: str) -> bool:
    """Whether files can be made in a folder, which takes the right to enter it, too."""
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def make_folder(path: str | os.PathLike, option: str) -> None:
    """Make a folder and its parents, unless they are there.

    Args:
        path: of the folder.
        option: that names it, such as "--output".

    Raises:
        UserError: if that cannot be done.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{option}: the folder {os.fspath(path)!r} cannot be made ({error.strerror}); name "
            "another one."
        ) from error


def kind_of_file(path: str | os.PathLike) -> str:
    """What a file is, and what to do about it, if it is one of those often taken for others.

    Returns:
        str: to follow "it is"; "" if the first bytes tell nothing.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    start = head[4:] if head[4:8] == b"ftyp" else head.lstrip()
    kinds = [kind for first, kind in _KINDS if start.startswith(first)]
    return "empty" if not head else kinds[0] if kinds else ""


def read_json(path: str | os.PathLike) -> Any:
    """Content of a JSON file in UTF-8.

    Raises:
        UserError: if it cannot be read; the message names the file and the place in it.
    """
    try:
        # What comes through a pipe can be read once only.
        kind = kind_of_file(path) if os.path.isfile(path) else ""
        if kind:
            raise UserError(f"{path} is not valid JSON: it is {kind}")
        with open(path, encoding="utf-8") as file:
            return parse_json(file.read(), path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON, which is text in UTF-8: {error.reason} at byte "
            f"{error.start}"
        ) from error


def parse_json(text: str, name: str | os.PathLike) -> Any:
    """Content of a JSON text.

    Args:
        text: one JSON value.
        name: what the messages call the text, usually the path of its file.

    Raises:
        UserError: if it is no JSON, nested too deeply, or holds an integer of over 4300 digits or
            half of a surrogate pair, which no UTF-8 text can hold.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        what = "it starts with a byte order mark" if text.startswith("\ufeff") else error.msg
        raise UserError(f"{name} is not valid JSON: {what} at {_place(text, error.pos)}") from error
    except RecursionError as error:
        raise UserError(f"{name} is not usable JSON: its brackets are nested too deeply") from error
    except ValueError as error:  # of int()
        found = _LONG_INTEGER.search(text)
        place = _place(text, found.start() if found else 0)
        raise UserError(f"{name} is not usable JSON: over 4300 digits at {place}") from error
    if _SURROGATE.search(text):
        for escape in _ESCAPE.finditer(text):
            if escape[1]:
                raise UserError(
                    f"{name} is not usable JSON: \\{escape[1]} at {_place(text, escape.start())} "
                    "is half of a surrogate pair, which stands for no character"
                )
    return content


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"
