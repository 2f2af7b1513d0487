"""Ask programs for help: helps.py PROGRAM..., in the root of the repository.

A program is a script, or "-m MODULE". Each runs in a fork of this process, which has loaded what
most of them need. Prints a JSON object of programs, each with its exit status and its output.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import detectron2.engine  # noqa: F401


def help_of(program):
    """Exit status and standard output of a program."""
    with tempfile.TemporaryFile("w+") as output:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), sys.stdout.fileno())
            end_as(program)
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def end_as(program):
    """Run ``python PROGRAM --help``, and end this process as the program ends."""
    *option, name = program.split()
    sys.argv = [name, "--help"]
    sys.path[0] = os.getcwd() if option else str(Path(name).resolve().parent)
    status = 0
    try:
        if option:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)  # to take down all that is loaded would take a second


if __name__ == "__main__":
    print(json.dumps({program: help_of(program) for program in sys.argv[1:]}))
