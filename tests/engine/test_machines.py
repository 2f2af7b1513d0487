"""Commands on several machines, here on one: what fails on one of them ends the others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
import pytest

from alrp.engine import argument_parser, run_command
from alrp.engine.failures import Failure
from alrp.engine.machines import Machines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def three(port):
    """The commands of three machines."""
    return [Machines(f"tcp://127.0.0.1:{port}", rank, 3) for rank in range(3)]


def until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("failing", [0, 2])
def test_all_machines_hear_what_failed_first(three, failing):
    assert all(machine.have_met(60) for machine in three)
    three[failing].tell(Failure("the disk is full", from_outside=True))
    assert until(lambda: all(machine.heard for machine in three))
    three[1].tell(Failure("the connection to another process was lost"))
    expected = Failure(f"machine {failing}: the disk is full", from_outside=True)
    assert [machine.wait_for_news() for machine in three] == [expected] * 3
    for machine in reversed(three):
        machine.leave(failed=True)


def test_machine_0_leaves_last_and_its_end_is_no_failure_for_who_has_left(three):
    assert all(machine.have_met(60) for machine in three)
    for machine in reversed(three):
        assert until(lambda: machine is not three[0] or three[0]._store.add("alrp/left", 0) == 2)
        machine.leave(failed=False)
    assert not any(machine.heard for machine in three)


def test_a_single_machine_tells_nobody(port):
    alone = Machines(f"tcp://127.0.0.1:{port}", 0, 1)
    alone.tell(Failure("x"))
    assert alone.wait_for_news() is None and not alone.have_met(60)
    alone.leave(failed=True)


def test_what_is_refused_on_one_machine_ends_the_other_that_waits(
    command_line, train_net, port, capsys
):
    url = f"tcp://127.0.0.1:{port}"
    waiting = Machines(url, 0, 2)
    meeting = ["--num-gpus", "1", "--num-machines", "2", "--dist-url", url, "--machine-rank", "1"]
    arguments = command_line(*meeting, MODEL__WEIGHTS="absent.pth")
    assert run_command(train_net.main, argument_parser().parse_args(arguments)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")
    assert said.startswith("MODEL.WEIGHTS 'absent.pth' does not exist")
    assert waiting.wait_for_news() == Failure(f"machine 1: {said}")
    waiting.leave(failed=True)


@pytest.mark.slow
def test_a_process_that_diverges_ends_the_training_on_both_machines_with_its_message(
    command_line, tmp_path, port
):
    """On machine 1 the learning rate is wrong."""
    meeting = ["--num-gpus", "1", "--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{port}"]
    commands = []
    for rank, rate in enumerate((1e-3, 1e25)):
        folder = tmp_path / str(rank)
        line = command_line(
            *meeting, "--machine-rank", str(rank), SOLVER__BASE_LR=rate, OUTPUT_DIR=folder
        )
        commands.append(
            subprocess.Popen(
                [sys.executable, "train_net.py", *line],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
        )
    try:
        errors = [command.communicate(timeout=150)[1] for command in commands]
    finally:
        for command in commands:
            command.kill()
    assert [command.returncode for command in commands] == [1, 1]
    last = [text.strip().splitlines()[-1] for text in errors]
    assert last[1].startswith("error: logits: ") and "NaN or Inf" in last[1]
    assert last[0] == f"error: machine 1: {last[1].removeprefix('error: ')}"
    assert "Traceback" not in "".join(errors)
