"""The package as others install it: built into a wheel, used from an empty folder."""

from __future__ import annotations

import numpy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
import pycocotools
import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments, cwd, packages=""):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(packages), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=580,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder into which the wheel was installed, without its dependencies."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("README.md", "LICENSE", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    for name in ("projects", "configs"):
        leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave_out)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", target]
    done = python("-m", "pip", "install", "-q", *map(str, options), ".", cwd=source)
    assert done.returncode == 0, done.stderr
    return target


# Options with which the scripts of examples/ end within seconds.
SCRIPTS = {
    "plain_loop.py": ["--steps", "1"],
    "query_detector.py": ["--steps", "2"],
    "torchvision_retinanet.py": ["--steps", "1"],
}
RUN_SCRIPTS = """
import runpy, sys
sys.path.append({folder!r})  # where a script looks for its neighbours
for name, options in {scripts!r}.items():
    sys.argv = [name, *options]
    runpy.run_path({folder!r} + "/" + name, run_name="__main__")
from detectron2.config import LazyConfig
for name in ("fcos_with_alrp.py", "vitdet_with_rs.py"):
    LazyConfig.load({folder!r} + "/" + name)
"""


@pytest.mark.slow
def test_the_examples_of_embedding_run_from_a_wheel(installed, tmp_path):
    document = (ROOT / "docs" / "embedding.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", document, re.DOTALL | re.MULTILINE)
    assert len(examples) > 5
    code = "import alrp\nprint(alrp.__file__)\n" + "".join(
        f"exec(compile({example!r}, 'example {i}', 'exec'), {{'__name__': 'example'}})\n"
        for i, example in enumerate(examples)
    )
    code += RUN_SCRIPTS.format(folder=str(ROOT / "examples"), scripts=SCRIPTS)
    (tmp_path / "examples.py").write_text(code)
    done = python("examples.py", cwd=tmp_path, packages=installed)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed)
    assert (tmp_path / "plain_loop.pth").exists()


def test_the_wheel_holds_all_configs(installed):
    of_repository, of_wheel = ROOT / "configs", installed / "alrp" / "configs"
    names = sorted(p.relative_to(of_repository) for p in of_repository.rglob("*.[yp][ay]*"))
    names = [name for name in names if name.suffix in (".py", ".yaml")]
    assert len(names) > 30
    for name in names:
        assert (of_wheel / name).read_bytes() == (of_repository / name).read_bytes()


def test_the_console_command_needs_no_framework(installed, tmp_path):
    """Beside the wheel and the standard library, only NumPy and pycocotools are there."""
    for package in (numpy, pycocotools):
        for path in Path(package.__path__[0]).parent.glob(f"{package.__name__}*"):
            (tmp_path / path.name).symlink_to(path)
    packages = f"{installed}{os.pathsep}{tmp_path}"
    assert python("-S", "-c", "import torch", cwd=tmp_path, packages=packages).returncode == 1
    case = ROOT / "tests" / "golden" / "lrp" / "case_04_missing_classes"
    files = [str(case / "ground_truth.json"), str(case / "detections.json")]
    command = str(installed / "bin" / "alrp-evaluate")
    done = python("-S", command, *files, cwd=tmp_path, packages=packages)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3].split()[:2] == ["mean", "90.011"]
