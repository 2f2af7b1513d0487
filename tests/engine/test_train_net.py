"""The training command as people use it: processes, resuming, evaluation, mistakes."""

from __future__ import annotations

import json
import operator
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
import pytest
import torch

from alrp.engine import argument_parser, run_command

ROOT = Path(__file__).resolve().parents[2]


def start(arguments, log, script="train_net.py"):
    """A process of a script on the CPU with one thread; all it prints goes to the file ``log``."""
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, script, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def run(arguments, log, script="train_net.py"):
    """Run a script that must end well."""
    code = start(arguments, log, script).wait(timeout=580)
    assert code == 0, log.read_text()


@pytest.fixture
def run_here(train_net, capsys):
    """``run_here(arguments)``: output of the command in this process; it must end well."""

    def command(arguments):
        assert run_command(train_net.main, argument_parser().parse_args(arguments)) == 0
        return "".join(capsys.readouterr())

    return command


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def results(folder):
    """Everything that an evaluation wrote."""
    return [
        json.loads((folder / "inference" / name).read_text())
        for name in ("lrp_results.json", "coco_instances_results.json")
    ]


@pytest.mark.slow
def test_two_processes_train_on_the_cpu_and_one_repeats_their_evaluation(
    command_line, run_here, tmp_path
):
    url = f"tcp://127.0.0.1:{free_port()}"
    run(command_line("--num-gpus", "2", "--dist-url", url), tmp_path / "printed.txt")
    weights = tmp_path / "output" / "model_final.pth"
    assert torch.load(weights)["iteration"] == 3
    trained = results(tmp_path / "output")
    assert set(trained[0]["per_class"]) == {"disc", "rectangle", "triangle"} and trained[1]

    # Batch norm saw other images on the other rank, yet both were evaluated as the saved model.
    folder = tmp_path / "evaluated"
    run_here(command_line("--eval-only", MODEL__WEIGHTS=weights, OUTPUT_DIR=folder))
    evaluated = results(folder)
    assert evaluated[0] == trained[0]
    key = operator.itemgetter("image_id", "score", "category_id")
    assert sorted(evaluated[1], key=key) == sorted(trained[1], key=key)


@pytest.fixture(scope="module")
def two_ranks(command_line_to, tmp_path_factory):
    """What two ranks wrote of a training of 5 iterations, and the checkpoint of its first."""
    folder = tmp_path_factory.mktemp("two_ranks")
    (folder / "output").mkdir()
    arguments = command_line_to(
        folder / "output",
        *("--num-gpus", "2"),
        SOLVER__MAX_ITER=5,
        SOLVER__CHECKPOINT_PERIOD=1,
    )
    run([str(folder), *arguments], folder / "printed.txt", script="tests/engine/rank_state.py")
    return folder, folder / "output" / "model_0000000.pth"


def of_ranks(folder, name):
    """What the file ``name`` of each rank holds."""
    return [json.loads((folder / f"{name}{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_both_ranks_hold_the_same_weights_and_self_balance_state(two_ranks):
    first, second = of_ranks(two_ranks[0], "rank")
    assert first == second
    assert first["weight"] != 50.0  # 12 images in batches of 4: a period is 3 steps
    assert first["count"] == 2 and first["sum_cls"] > 0 and first["sum_loc"] > 0


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_sees_the_images_that_are_left(
    two_ranks, command_line, tmp_path
):
    folder, checkpoint = two_ranks
    images = [name for of_rank in of_ranks(folder, "images") for name in of_rank[:2]]
    (tmp_path / "output").mkdir()
    shutil.copy(checkpoint, tmp_path / "output")
    (tmp_path / "output" / "last_checkpoint").write_text(checkpoint.name)
    arguments = command_line(
        *("--num-gpus", "2", "--resume"),
        SOLVER__MAX_ITER=3,
        DATALOADER__NUM_WORKERS=2,
        DATASETS__TEST=(),
    )
    log = tmp_path / "printed.txt"
    run([str(tmp_path), *arguments], log, script="tests/engine/rank_state.py")
    images += [name for of_rank in of_ranks(tmp_path, "images") for name in of_rank]
    assert len(images) == len(set(images)) == 12  # 3 batches of 4: each image once


@pytest.mark.slow
def test_two_launches_act_as_two_machines(command_line, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [
        start(
            command_line(
                *("--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url),
                OUTPUT_DIR=tmp_path / f"machine{rank}",
            ),
            log=tmp_path / f"{rank}.txt",
        )
        for rank in range(2)
    ]
    codes = [machine.wait(timeout=580) for machine in machines]
    assert codes == [0, 0], (tmp_path / "0.txt").read_text() + (tmp_path / "1.txt").read_text()
    assert (tmp_path / "machine0" / "model_final.pth").exists()
    assert not (tmp_path / "machine1" / "model_final.pth").exists()  # the second is no main process
    log = (tmp_path / "machine0" / "log.txt").read_text()
    assert "Rank of current process: 0. World size: 2" in log


@pytest.mark.slow
def test_a_killed_run_resumes_with_all_its_state(command_line, run_here, tmp_path):
    folder = tmp_path / "output"
    arguments = command_line(SOLVER__MAX_ITER=400, SOLVER__CHECKPOINT_PERIOD=3)
    process = start(arguments, tmp_path / "killed.txt")
    deadline = time.monotonic() + 400
    while not (folder / "last_checkpoint").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "killed.txt").read_text()

    saved = torch.load(folder / (folder / "last_checkpoint").read_text())
    weight = saved["model"]["ranking_losses.self_balance.weight"]
    done = saved["iteration"] + 1
    assert done % 3 == 0 and weight != 50.0  # 12 images in batches of 4: a period is 3 steps

    resume = command_line("--resume", SOLVER__MAX_ITER=done + 2, SOLVER__CHECKPOINT_PERIOD=1)
    output = run_here(resume)
    assert f"Starting training from iteration {done}" in output
    first = torch.load(folder / f"model_{done:07d}.pth")
    balance = {k.split(".")[-1]: v for k, v in first["model"].items() if "self_balance" in k}
    assert balance["count"] == 1 and balance["weight"] == weight
    # One step after the start, so a state that was not restored would count one step in all.
    optimizer = first["trainer"]["_trainer"]["optimizer"]
    assert {float(state["step"]) for state in optimizer["state"].values()} == {done + 1}
    assert first["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == done + 1


@pytest.mark.slow
def test_evaluation_repeats_the_figures_of_the_training_run(command_line, run_here, tmp_path):
    run(command_line(SOLVER__MAX_ITER=6), tmp_path / "printed.txt")
    last = metrics(tmp_path / "output")[-1]
    weights = tmp_path / "output" / "model_final.pth"
    output = run_here(
        command_line("--eval-only", MODEL__WEIGHTS=weights, OUTPUT_DIR=tmp_path / "evaluated")
    )
    assert results(tmp_path / "evaluated") == results(tmp_path / "output")
    assert f"{last['bbox/AP']:.4f}" in output


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_ends_its_processes_and_says_how_to_go_on(
    command_line, tmp_path, number, status
):
    folder, log = tmp_path / "output", tmp_path / "printed.txt"
    options = ("--num-gpus", "2") if number == signal.SIGINT else ()
    arguments = command_line(
        *options, SOLVER__MAX_ITER=10**5, SOLVER__CHECKPOINT_PERIOD=2, DATALOADER__NUM_WORKERS=1
    )
    process = start(arguments, log)
    deadline = time.monotonic() + 400
    while not (folder / "last_checkpoint").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == status, log.read_text()
    printed = log.read_text()
    last = folder / (folder / "last_checkpoint").read_text()
    assert printed.splitlines()[-1].endswith(f"; --resume goes on from {last}")
    assert "Traceback" not in printed and "leaked" not in printed
    assert not (folder / "inference").exists()


@pytest.mark.slow
def test_a_killed_loader_worker_ends_the_command_with_one_message(command_line, tmp_path):
    folder, log = tmp_path / "output", tmp_path / "printed.txt"
    process = start(command_line(SOLVER__MAX_ITER=10**5, DATALOADER__NUM_WORKERS=1), log)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 400
    while "Starting training" not in log.read_text() or not children.read_text():
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        time.sleep(0.05)
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    printed = log.read_text()
    assert "error: a loader worker was killed" in printed.splitlines()[-1]
    assert printed.splitlines()[-1].endswith("; there is no checkpoint yet to go on from")
    assert "Traceback" not in printed and not (folder / "model_final.pth").exists()


@pytest.mark.parametrize("max_iter", [2, 20], ids=["in the last iteration", "earlier"])
def test_divergence_ends_with_one_message_and_no_evaluation(
    command_line, train_net, capsys, tmp_path, max_iter
):
    arguments = command_line(
        SOLVER__BASE_LR=1e30, SOLVER__WARMUP_ITERS=0, SOLVER__MAX_ITER=max_iter
    )
    assert run_command(train_net.main, argument_parser().parse_args(arguments)) == 1
    printed = "".join(capsys.readouterr())
    assert printed.count("error: ") == 1 and "NaN or Inf" in printed
    assert "Traceback" not in printed and not (tmp_path / "output" / "inference").exists()
