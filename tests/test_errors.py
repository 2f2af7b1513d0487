"""How commands end: the exit status and the one line on stderr."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
import pytest

from alrp.errors import UserError, exit_status

ROOT = Path(__file__).resolve().parents[1]
# The one works without this package, the other is a command of it.
OTHERS = ("install_detectron2.py", "evaluate_lrp.py")
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("tools", "demo", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text() and path.name not in OTHERS
)


@pytest.mark.parametrize(
    "error, status, line",
    [(None, 0, ""), (UserError("text"), 1, "error: text\n")]
    + [(KeyboardInterrupt(), 130, "error: interrupted\n")],
    ids=["none", "mistake", "Ctrl-C"],
)
def test_a_command_ends_with_a_status_and_one_line(capsys, error, status, line):
    def command(given):
        if given:
            raise given

    assert exit_status(command, error) == status
    assert capsys.readouterr().err == line


def test_a_command_may_have_another_status_for_mistakes():
    def command():
        raise UserError("text")

    assert exit_status(command, mistake=2) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_so(command):
    text = (ROOT / command).read_text()
    assert re.search(r"    return exit_status\(\w+, parse_args\(argv\)\)\n", text)


@pytest.mark.parametrize("tool", ["add_thresholds", "export_model"])
def test_an_output_that_cannot_be_written_is_known_before_the_work(
    load_script, tmp_path, capsys, tool
):
    output = tmp_path / "absent" / "out"
    command = ["--config-file", str(tmp_path / "none.yaml"), "--output", str(output)]
    assert load_script(f"tools/{tool}.py").main(command) == 1
    assert f"error: --output: {output} cannot be written" in capsys.readouterr().err


def test_ctrl_c_ends_a_command_with_status_130(tmp_path):
    os.mkfifo(tmp_path / "annotations.json")
    command = [sys.executable, str(ROOT / "tools" / "evaluate_lrp.py"), "annotations.json", "none"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        with open(tmp_path / "annotations.json", "w"):  # waits until the command reads it
            process.send_signal(signal.SIGINT)
            _, text = process.communicate(timeout=120)
    assert (process.returncode, text) == (130, "error: interrupted\n")
