"""Files that appear whole or not at all, and what is said of JSON that cannot be read."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import subprocess
import sys
import pytest
import torch

from alrp.errors import NoSpaceError, UserError
from alrp.files import check_folder, check_new_file, make_folder, parse_json, read_json, replacing


@pytest.fixture
def small_files():
    """Files of this process cannot grow beyond 100 kB, as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"older")
    with replacing(path) as file:
        file.write(b"newer")
        file.flush()
        assert path.read_bytes() == b"older"
    assert path.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_older_file_and_no_other(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"older")
    with pytest.raises(error):
        with replacing(path) as file:
            file.write(b"newer")
            raise error("stop")
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a.bin") as file:
            file.write(b"a")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a.bin")
    with replacing(tmp_path / "link") as file:
        file.write(b"a")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a.bin").read_bytes() == b"a"


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(UserError, match="no plain file"):
        with replacing(tmp_path):
            pass


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_place_of_a_folder_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    path = tmp_path / name
    with pytest.raises(
        UserError, match=f"^--out: '{path}' cannot .*: {tmp_path}/file is no folder"
    ):
        check_folder(path, "--out")
    with pytest.raises(UserError, match=f"^--out: the folder '{path}' cannot be made"):
        make_folder(path, "--out")


def test_a_folder_that_can_be_made_is_checked_without_making_it(tmp_path):
    check_folder(tmp_path / "new" / "below", "--out")
    assert not os.listdir(tmp_path)
    for _ in range(2):
        make_folder(tmp_path / "new" / "below", "--out")
    assert (tmp_path / "new" / "below").is_dir()


@pytest.mark.parametrize("name", ["", "absent/file", "file/below", "pipe"])
def test_a_file_that_cannot_be_written_is_known_before(tmp_path, name):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=f"^--out: {tmp_path / name} cannot be written; name a"):
        check_new_file(tmp_path / name, "--out")


@pytest.mark.parametrize("name", ["file", "new", "link"])
def test_a_file_that_can_be_written_passes_the_check(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("new")
    check_new_file(tmp_path / name, "--out")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere/a.bin cannot be written: No such file"):
        with replacing(tmp_path / "nowhere" / "a.bin"):
            pass


@pytest.mark.parametrize(
    "write",
    [lambda f: f.write(bytes(10**6)), lambda f: torch.save(torch.zeros(10**6), f)],
    ids=["bytes", "torch.save"],
)
def test_a_file_that_cannot_grow_is_said_to_be_so(tmp_path, small_files, write):
    (tmp_path / "a.bin").write_bytes(b"older")
    with pytest.raises(UserError, match="a.bin cannot be written: File too large"):
        with replacing(tmp_path / "a.bin") as file:
            write(file)
    assert (tmp_path / "a.bin").read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    said = "a.bin cannot be written: the disk is full; free space"
    with pytest.raises(NoSpaceError, match=said):
        with replacing(tmp_path / "a.bin") as file:
            file.write(b"a")
    assert os.listdir(tmp_path) == []


WRITE_FOR_EVER = """
import sys, time
from alrp.files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_files_are_written_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with replacing(tmp_path / "a.bin") as file:
        file.write(b"a")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_that_another_writer_took_for_a_leftover_is_begun_again(tmp_path, monkeypatch):
    lock, others = fcntl.flock, []

    def lock_late(file, operation):
        if not others:  # the other writer comes between the making of the file and its lock
            others.append(file.name)
            with replacing(tmp_path / "b.bin") as other:
                other.write(b"b")
            assert not os.path.exists(file.name)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with replacing(tmp_path / "a.bin") as file:
        file.write(b"a")
    assert (tmp_path / "a.bin").read_bytes() == b"a"
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("can_sync_folders", [True, False])
def test_the_new_name_reaches_the_disk(tmp_path, monkeypatch, can_sync_folders):
    sync, synced = os.fsync, []

    def spy(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((os.path.isdir(path), (tmp_path / "a.bin").exists()))
        if os.path.isdir(path) and not can_sync_folders:
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    with replacing(tmp_path / "a.bin") as file:
        file.write(b"a")
    assert synced == [(False, False), (True, True)]  # the file before, its folder after renaming
    assert (tmp_path / "a.bin").read_bytes() == b"a"


def test_what_a_killed_process_left_goes_at_the_next_write(tmp_path):
    path = tmp_path / "a.bin"
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        with replacing(tmp_path / "b.bin") as file:  # the other file is still being written
            file.write(b"b")
        (left,) = set(os.listdir(tmp_path)) - {"b.bin"}
        assert left.startswith(".alrp-") and left.endswith(".tmp")
        process.kill()
    assert left in os.listdir(tmp_path) and not path.exists()
    (tmp_path / ".alrp-mine.tmp").touch()  # a user's own
    with replacing(tmp_path / "c.bin") as file:
        file.write(b"c")
    assert sorted(os.listdir(tmp_path)) == [".alrp-mine.tmp", "b.bin", "c.bin"]


@pytest.mark.parametrize(
    "content, said",
    [
        (b'{"a": 1,\n "b": ]}', "is not valid JSON: .* at line 2, column 7"),
        (b"", "is not valid JSON: it is empty"),
        (b" ", "is not valid JSON: .* at line 1, column 2"),
        (b"\x1f\x8b\x08\0", "it is compressed by gzip: unpack it by gunzip"),
        (b"PK\x03\x04", "it is a ZIP archive, to be unpacked, or a file of torch.save"),
        (b"\x80\x04\x95", "it is a Python pickle, which can run code: export it as JSON"),
        ('{"images": []}'.encode("utf-16"), "it is text in UTF-16: save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html>", "it is HTML or XML, such as the page of a failed download"),
        (b"\xef\xbb\xbf{}", "is not valid JSON: it starts with a byte order mark"),
        (b'"\xff"', "is not valid JSON, which is text in UTF-8: .* at byte 1"),
        (b"[" * 10**6, "is not usable JSON: its brackets are nested too deeply"),
        (b'{"a":' * 10**6, "is not usable JSON: its brackets are nested too deeply"),
        (b"[1,\n " + b"7" * 5000 + b"]", "over 4300 digits at line 2, column 2"),
        (b'["a",\n "\\ud83d"]', r"\\ud83d at line 2, column 3 is half of a surrogate pair"),
        (b'["\\uDE00\\ud83d"]', r"\\uDE00 at line 1, column 3 is half"),
    ],
    ids=range(16),
)
def test_json_that_cannot_be_used_is_explained(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} .*{said}"):
        read_json(path)


def test_a_missing_folder_is_not_called_full(tmp_path):
    with pytest.raises(UserError, match="make the folder first"):
        with replacing(tmp_path / "missing" / "a.bin"):
            pass


def test_json_may_come_through_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, b'{"a": 1}')
    os.close(writer)
    assert read_json(f"/dev/fd/{reader}") == {"a": 1}
    os.close(reader)


@pytest.mark.parametrize("path", ["nowhere.json", "."])
def test_a_file_that_cannot_be_read_is_named(path):
    with pytest.raises(UserError, match=f"{path} cannot be read: "):
        read_json(path)


@pytest.mark.parametrize(
    "text, content",
    [
        ('{"a": [1, NaN, null]}', None),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\\ud83d"', r"\ud83d"),
        ("1" * 4300, int("1" * 4300)),
    ],
)
def test_json_that_can_be_used_is(text, content):
    if content is None:
        assert str(parse_json(text, "text")) == "{'a': [1, nan, None]}"
    else:
        assert parse_json(text, "text") == content
