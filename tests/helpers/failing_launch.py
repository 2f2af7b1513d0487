"""Launch two processes that meet an end of a kind: failing_launch.py KIND."""

import argparse
import os
import signal
import sys
import time
from importlib.util import find_spec, module_from_spec

# Launching needs one module of each of these packages. They are left empty here, also in the two
# processes, which run this file too: trainers, models and datasets would take most of the time.
for package in ("detectron2.engine", "alrp.engine", "alrp.losses"):
    sys.modules[package] = module_from_spec(find_spec(package))

from detectron2.utils import comm  # noqa: E402

from alrp.engine.launch import launch  # noqa: E402
from alrp.errors import UserError  # noqa: E402


def main(args):
    print(f"process {comm.get_rank()} is {os.getpid()}", flush=True)
    if comm.get_rank() == 1:
        if args.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if args.kind == "mistake":
            raise UserError("image 7 is empty")
        if args.kind == "bug":
            raise KeyError("no such thing")
        if args.kind == "exit":
            sys.exit(5)
    if args.kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if args.kind in ("deaf", "signalled"):
        time.sleep(300)
    comm.synchronize()


if __name__ == "__main__":
    args = argparse.Namespace(
        kind=sys.argv[1], num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto"
    )
    try:
        launch(main, args)
    except BaseException as error:
        print(f"raised {type(error).__name__}: {error}", flush=True)
        sys.exit(1)
    print("ended well", flush=True)
