"""Several processes: where they meet, and that none of them outlives a failure."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
import pytest

from alrp.engine.failures import CONNECTION_LOST, Failure
from alrp.engine.launch import (
    ProcessFailure,
    _raise_cause,
    launch,
    process_group_url,
    world_size,
)
from alrp.engine.machines import Machines
from alrp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def url(dist_url, **overrides):
    options = {"num_machines": 1, "machine_rank": 0, **overrides}
    return process_group_url(argparse.Namespace(dist_url=dist_url, **options))


def test_auto_is_a_free_port_of_this_machine():
    port = int(re.fullmatch(r"tcp://127\.0\.0\.1:(\d+)", url("auto"))[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_several_machines_need_an_address():
    with pytest.raises(UserError, match="several machines need --dist-url tcp://ADDRESS:PORT"):
        url("auto", num_machines=2)


@pytest.mark.parametrize(
    "num_gpus, num_machines, total", [(0, 1, 1), (1, 1, 1), (4, 1, 4), (1, 2, 2), (4, 2, 8)]
)
def test_all_processes_of_all_machines_count(num_gpus, num_machines, total):
    args = argparse.Namespace(num_gpus=num_gpus, num_machines=num_machines)
    assert world_size(args) == total


def test_several_machines_without_processes_for_a_group_are_refused():
    args = argparse.Namespace(num_gpus=0, num_machines=2, machine_rank=0, dist_url="auto")
    with pytest.raises(UserError, match="--num-machines is 2, but --num-gpus is 0, so that each"):
        launch(lambda args: pytest.fail("trained alone"), args)


@pytest.mark.parametrize(
    "dist_url, said",
    [
        ("tcp://127.0.0.1", "has no port"),
        ("tcp://127.0.0.1:0", "has no port"),
        ("tcp://127.0.0.1:99999", "a port from 1 to 65535, but: Port out of range"),
        ("tcp://127.0.0.1:abc", "a port from 1 to 65535"),
        ("bogus", "is no address"),
        ("http://127.0.0.1:5000", "is no address"),
        ("tcp://no.such.host.invalid:5000", "no.such.host.invalid is unknown here"),
        ("tcp://192.0.2.1:5000", "cannot listen at 192.0.2.1"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(dist_url, said):
    with pytest.raises(UserError, match="--dist-url") as caught:
        url(dist_url)
    assert said in str(caught.value)


def test_a_port_in_use_is_refused_on_the_machine_that_listens():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=r"port \d+ is in use"):
            url(taken)
        assert url(taken, num_machines=2, machine_rank=1) == taken


LOST, MISTAKE = Failure(CONNECTION_LOST, from_outside=True), Failure("image 7 is empty")


@pytest.mark.parametrize(
    "exit_codes, failures, said",
    [
        ([1, 1], [LOST, MISTAKE], "image 7 is empty"),
        ([-signal.SIGABRT, 1], [None, MISTAKE], "image 7 is empty"),
        ([1, -signal.SIGKILL], [LOST, None], "process 1 was killed (SIGKILL; out of memory?)"),
        ([1, -signal.SIGABRT], [LOST, None], "process 1 was killed (SIGABRT)"),
        ([130, 1], [None, LOST], "process 0 was interrupted or terminated"),
        ([1, 1], [LOST, LOST], CONNECTION_LOST),
    ],
)
def test_of_several_failures_that_which_caused_the_others_is_told(exit_codes, failures, said):
    """Processes that have ended; one without a message ended silently."""
    processes = [SimpleNamespace(exitcode=code, is_alive=lambda: False) for code in exit_codes]
    outcomes = multiprocessing.get_context("spawn").SimpleQueue()
    for rank, failure in enumerate(failures):
        if failure:
            outcomes.put((rank, failure, ""))
    with pytest.raises(ProcessFailure) as caught:
        _raise_cause(processes, outcomes, Machines("tcp://127.0.0.1:1", 0, 1))
    assert str(caught.value) == said


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def start():
    """``start(kind)``: a launch of two processes; none of them may outlive the test."""
    started = []

    def begin(kind):
        started.append(
            subprocess.Popen(
                [sys.executable, "tests/helpers/failing_launch.py", kind],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def processes_in(text):
    return [int(pid) for pid in re.findall(r"process \d is (\d+)", text)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, said",
    [
        ("killed", "raised ProcessFailure: process 1 was killed (SIGKILL; out of memory?)"),
        ("mistake", "raised ProcessFailure: image 7 is empty"),
        ("bug", "KeyError: 'no such thing'"),
        ("exit", "raised ProcessFailure: process 1 ended with exit status 5"),
        ("well", "ended well"),
    ],
)
def test_the_first_failure_is_told_and_ends_all_processes(start, kind, said):
    process = start(kind)
    output = process.communicate(timeout=300)[0]
    assert said in output and "leaked" not in output
    assert output.count("Traceback") == (kind == "bug")
    assert len(processes_in(output)) == 2 and not any(map(is_running, processes_in(output)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, number, said",
    [
        ("signalled", signal.SIGINT, "raised KeyboardInterrupt"),
        ("signalled", signal.SIGTERM, "raised Terminated"),
        ("deaf", signal.SIGTERM, "raised Terminated"),
    ],
)
def test_a_signal_to_the_parent_ends_its_processes(start, kind, number, said):
    process, lines = start(kind), ""
    while len(processes_in(lines)) < 2:
        lines += process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert said in output and "Traceback" not in output and "leaked" not in output
    assert not any(map(is_running, processes_in(lines)))


@pytest.mark.slow
def test_processes_that_hear_no_signal_end_with_a_command_that_is_killed(start):
    """As those that wait for a GPU."""
    process, lines = start("deaf"), ""
    while len(processes_in(lines)) < 2:
        lines += process.stdout.readline()
    time.sleep(0.5)
    process.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, processes_in(lines))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, processes_in(lines)))
