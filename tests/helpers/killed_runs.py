"""Train with kill -9 again and again, each followed by --resume: killed_runs.py KILLS ARGS...

ARGS are those of train_net.py, with --resume. Every run is a fork of this process, which has loaded
the libraries but computed nothing. The kills take turns: in the middle of writing a checkpoint, at
a random time, and a random moment after a checkpoint was begun. Prints how many of them hit a
checkpoint that was being written.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from alrp.engine import argument_parser, run_command, setup_config

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train_net  # noqa: E402

_DEADLINE = 120.0  # seconds for a run to begin a checkpoint
_MOST_CHECKPOINTS = 10  # of a run before it is killed: a fast machine must not end the training


def start(args, log, dies_in_checkpoint=0):
    """Process id of a run; if asked to, it kills itself while it writes that checkpoint."""
    pid = os.fork()
    if pid == 0:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        if dies_in_checkpoint:
            kill_in_checkpoint(dies_in_checkpoint)
        status = run_command(train_net.main, args)
        os._exit(status)
    return pid


def kill_in_checkpoint(number):
    """Kill this process when the content of its checkpoint ``number`` is to reach the disk."""
    sync, begun = os.fsync, []

    def fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.is_file() and path.open("rb").read(2) == b"PK":  # as torch.save writes
            begun.append(path)
        if len(begun) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync


def wait_for_moment(folder, number, rng):
    """Until a random time, or every other time until a checkpoint has been begun."""
    before = set(os.listdir(folder))
    if number % 3 == 1:
        seen, end = set(), time.monotonic() + rng.uniform(0, 3)
        while time.monotonic() < end and len(seen) < _MOST_CHECKPOINTS:
            seen.update(n for n in set(os.listdir(folder)) - before if n.endswith(".pth"))
            time.sleep(0.0005)
        return
    deadline = time.monotonic() + _DEADLINE
    while not any(n.endswith((".tmp", ".pth")) for n in set(os.listdir(folder)) - before):
        assert time.monotonic() < deadline, f"run {number} began no checkpoint in {_DEADLINE:g} s"
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.03))


def main(num_kills, arguments):
    args = argument_parser().parse_args(arguments)
    folder = Path(setup_config(args).OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    rng, torn = random.Random(0), 0
    with open(folder.with_suffix(".txt"), "wb") as log:
        for number in range(num_kills):
            dies_in_checkpoint = 0 if number % 3 else rng.randint(1, 3)
            pid = start(args, log, dies_in_checkpoint)
            try:
                if not dies_in_checkpoint:
                    wait_for_moment(folder, number, rng)
                    os.kill(pid, signal.SIGKILL)
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                raise
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), f"run {number} ended before it was killed"
            assert (
                is_torn(folder) or not dies_in_checkpoint
            ), f"run {number} left a whole checkpoint"
            torn += is_torn(folder)
        _, status = os.waitpid(start(args, log), 0)
    print(f"{num_kills} kills, {torn} of them while a checkpoint was written", flush=True)
    return os.waitstatus_to_exitcode(status)


def is_torn(folder):
    """Whether the last checkpoint that was begun is not the last one that is named."""
    tag = folder / "last_checkpoint"
    if any(folder.glob(".alrp-*.tmp")):
        return True
    newest = max((path.name for path in folder.glob("model_*.pth")), default=None)
    return newest is not None and (not tag.exists() or tag.read_text() != newest)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
