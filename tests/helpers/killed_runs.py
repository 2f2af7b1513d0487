"""Train with kill -9 at random moments, each followed by --resume: killed_runs.py KILLS ARGS...

ARGS are those of train_net.py, with --resume. Every run is a fork of this process, which has loaded
the libraries but computed nothing. Prints how many kills hit a checkpoint that was being written.
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


def start(args, log):
    """Process id of a run."""
    pid = os.fork()
    if pid == 0:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = run_command(train_net.main, args)
        os._exit(status)
    return pid


def files(folder):
    return {(path.name, path.stat().st_size) for path in folder.glob("*") if "model" in path.name}


def wait_for_moment(pid, folder, number, rng):
    """Until a random time, or with every second kill until a checkpoint is being written."""
    if number % 2:
        time.sleep(rng.uniform(0, 3))
        return
    before = set(os.listdir(folder)) if folder.exists() else set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        new = (set(os.listdir(folder)) if folder.exists() else set()) - before
        if any(name.endswith((".tmp", ".pth")) for name in new):
            break
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.03))


def main(num_kills, arguments):
    args = argument_parser().parse_args(arguments)
    folder = Path(setup_config(args).OUTPUT_DIR)
    rng, torn = random.Random(0), 0
    with open(folder.with_suffix(".txt"), "wb") as log:
        for number in range(num_kills):
            pid = start(args, log)
            wait_for_moment(pid, folder, number, rng)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), f"run {number} ended before it was killed"
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
