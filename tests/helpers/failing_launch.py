"""Launch two processes that meet an end of a kind: failing_launch.py KIND."""

import argparse
import os
import signal
import sys
import time

from detectron2.utils import comm

from alrp.engine.launch import launch
from alrp.errors import UserError


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
