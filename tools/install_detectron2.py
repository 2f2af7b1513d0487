#!/usr/bin/env python
"""Install Detectron2 into the running Python, from PyPI and without a compiler.

Detectron2 is not on PyPI under its own name. The wheel of LabGym is, and carries upstream's tree at
commit b7ff9466 below ``LabGym/detectron2``, unchanged but for the import prefix. This script takes
that Apache-2.0 subtree, undoes the prefix and installs the result as ``detectron2``, with the
metadata that ``pip list`` and ``pip uninstall`` need. A Detectron2 that is there already stays as
it is. The compiled operators (``detectron2._C``) are not in it. Standard library only.
"""

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION, COMMIT = "detectron2", "0.6", "b7ff9466"
CARRIER = "labgym==2.9.6"
SHA256 = "a13468af525cad2ce9965678b0095ba8a38652dc2e9cdf3ae6c25601e11229ac"
SUBTREE, FOREIGN, OWN = "LabGym/detectron2/", b"LabGym.detectron2", b"detectron2"
OLDEST, NEWEST = (3, 9), (3, 13)  # the sources compile on both; later ones are tried with a note
INSTALLER = "alrp tools/install_detectron2.py"
STAGE_PREFIX = ".detectron2-stage-"
LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
CHECK = (
    "import detectron2.config, detectron2.modeling, detectron2.model_zoo as m; print(m.__file__)"
)

METADATA = f"""Metadata-Version: 2.1
Name: {PACKAGE}
Version: {VERSION}
Summary: Upstream Detectron2 at commit {COMMIT}, without compiled operators, out of {CARRIER}
Home-page: https://github.com/facebookresearch/detectron2
Author: FAIR
License: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.9
Requires-Dist: torch
Requires-Dist: torchvision
Requires-Dist: numpy
Requires-Dist: Pillow
Requires-Dist: cloudpickle
Requires-Dist: fvcore <0.1.6,>=0.1.5
Requires-Dist: hydra-core >=1.1
Requires-Dist: iopath >=0.1.7
Requires-Dist: matplotlib
Requires-Dist: omegaconf <2.4,>=2.1
Requires-Dist: packaging
Requires-Dist: pycocotools >=2.0.2
Requires-Dist: setuptools <82
Requires-Dist: tabulate
Requires-Dist: tensorboard
Requires-Dist: termcolor >=1.1
Requires-Dist: tqdm >4.29.0
Requires-Dist: yacs >=0.1.8
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: alrp\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


class InstallError(Exception):
    """What went wrong and how to mend it, in one sentence."""


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--wheel", type=Path, metavar="PATH", help=f"use this wheel of {CARRIER}, download nothing"
    )
    parser.add_argument(
        "--system", action="store_true", help="allow a Python that is not a virtual environment"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Install, or leave alone what is there; prints one message and returns the exit status."""
    args = parse_args(argv)
    try:
        where = existing_detectron2()
        if where:
            print(f"Detectron2 is here already, left as it is: {where}")
            return 0
        purelib = Path(sysconfig.get_path("purelib"))
        check_interpreter(purelib, args.system)
        with tempfile.TemporaryDirectory() as folder:
            wheel = args.wheel or download(Path(folder))
            install(wheel, purelib)
        print(f"Detectron2 {VERSION} ({COMMIT}, no compiled operators) installed in {purelib}")
        return 0
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
    except OSError as error:
        print(f"install_detectron2: the file system refused: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("install_detectron2: interrupted", file=sys.stderr)
        return 130
    return 1


def existing_detectron2():
    """Where a working Detectron2 lies, or None if there is none.

    Raises:
        InstallError: there is one and it is broken, or pip knows one that cannot be found.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:  # no origin: just a folder of that name
        done = run_python("-c", CHECK)
        if done.returncode == 0:
            return Path(spec.origin).parent
        raise InstallError(
            f"the Detectron2 in {Path(spec.origin).parent} does not import ({reason(done.stderr)});"
            " it was not touched: mend it, or remove it with `pip uninstall detectron2` and rerun"
        )
    try:
        known = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    if (known.read_text("INSTALLER") or "").strip() != INSTALLER:
        raise InstallError(
            f"pip lists Detectron2 {known.version}, but it cannot be imported; it was not touched:"
            " mend it, or remove it with `pip uninstall detectron2` and rerun"
        )
    return None  # the first half of an interrupted run of this script; publish() replaces it


def check_interpreter(purelib, allow_system):
    """Refuse a Python that is too old, shared with the system, or cannot be written to."""
    version, text = sys.version_info[:2], "{}.{}".format(*sys.version_info[:2])
    tested = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
    if version < OLDEST:
        raise InstallError(
            f"this Detectron2 needs Python {tested} and this is {text}: use a newer interpreter"
        )
    if version > NEWEST:
        print(f"Note: this Detectron2 is tested with Python {tested}, this is {text}")
    in_environment = sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX") == sys.prefix
    if not (in_environment or allow_system):
        raise InstallError(
            f"{sys.executable} is not in a virtual environment: make one with"
            " `python3 -m venv .venv` and use its python, or pass --system"
        )
    if not os.access(purelib, os.W_OK):
        raise InstallError(
            f"{purelib} cannot be written: run this with the Python of an environment you own"
        )


def download(folder):
    """Fetch the carrier wheel with pip; returns its path in ``folder``."""
    print(f"Downloading {CARRIER} from PyPI, which carries Detectron2 {VERSION} (1 MB)", flush=True)
    options = ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--retries=2"]
    done = run_python("-m", "pip", "download", "--quiet", *options, f"--dest={folder}", CARRIER)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise InstallError("this Python has no pip: run `python -m ensurepip`, or pass --wheel")
    raise InstallError(
        f"could not download {CARRIER} from PyPI (pip: {reason(done.stderr)}): check the network"
        f" and proxy, or fetch it elsewhere with `pip download {' '.join(options[:3])} {CARRIER}`"
        " and pass --wheel PATH"
    )


def install(wheel, purelib):
    """Check the wheel and put its Detectron2 into ``purelib``, wholly or not at all."""
    if (purelib / PACKAGE).exists():  # no package, or existing_detectron2() would have found it
        raise InstallError(
            f"{purelib / PACKAGE} is in the way: it is no package; move it elsewhere"
        )
    check_hash(wheel)
    for stale in purelib.glob(STAGE_PREFIX + "*"):  # left by a run that was killed
        shutil.rmtree(stale)
    stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=purelib))
    try:
        unpack(wheel, stage)
        write_dist_info(stage)
        check_import(stage)
        publish(stage, purelib)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_hash(wheel):
    """Raise unless the file is the pinned wheel, bit for bit."""
    if not wheel.is_file():
        raise InstallError(f"there is no file {wheel}: pass the path of the {CARRIER} wheel")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise InstallError(
            f"{wheel.name} is not the pinned wheel of {CARRIER} (sha256 expected {SHA256},"
            f" got {found}): nothing was installed; download it again"
        )


def unpack(wheel, stage):
    """Write the Detectron2 subtree of the wheel to ``stage``, with upstream's import prefix."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(SUBTREE) and not n.endswith("/")]
        if not names:
            raise InstallError(f"{wheel.name} holds no {SUBTREE}: it is not the {CARRIER} wheel")
        for name in names:
            target = stage / PACKAGE / name[len(SUBTREE) :]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name).replace(FOREIGN, OWN))


def write_dist_info(stage):
    """Write the metadata pip and importlib.metadata read, RECORD last as it lists the rest."""
    info = stage / f"{PACKAGE}-{VERSION}.dist-info"
    (info / "licenses").mkdir(parents=True)
    shutil.copyfile(LICENSE, info / "licenses" / "LICENSE")
    texts = {"METADATA": METADATA, "WHEEL": WHEEL, "INSTALLER": INSTALLER + "\n"}
    texts["top_level.txt"] = PACKAGE + "\n"
    for name, text in texts.items():
        (info / name).write_bytes(text.encode())
    rows = []
    for path in sorted(p for p in stage.rglob("*") if p.is_file()):
        content = path.read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{path.relative_to(stage).as_posix()},sha256={digest},{len(content)}")
    rows.append(f"{info.name}/RECORD,,")
    (info / "RECORD").write_bytes(("\n".join(rows) + "\n").encode())


def check_import(stage):
    """Import the staged copy in a fresh interpreter, before anybody else can see it."""
    done = run_python("-B", "-c", f"import sys; sys.path.insert(0, {str(stage)!r}); {CHECK}")
    if done.returncode:
        raise InstallError(
            f"Detectron2 does not import here ({reason(done.stderr)}): nothing was installed;"
            " install what it needs with `pip install -r requirements.txt` and rerun"
        )


def publish(stage, purelib):
    """Rename the staged folders into place.

    The metadata goes first: if the run dies in between, nothing is importable and the next run sees
    by INSTALLER that it may replace what it finds.
    """
    for name in (f"{PACKAGE}-{VERSION}.dist-info", PACKAGE):
        target = purelib / name
        if target.exists():  # the metadata of an interrupted run
            os.replace(target, stage / f"old-{name}")
        os.replace(stage / name, target)


def run_python(*arguments):
    """Run this interpreter; a CompletedProcess with text output."""
    # Not the caller's folder, where a checkout of Detectron2 may lie and hide the installed one.
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parent,
    )


def reason(stderr):
    """The last line of an error output, which names the error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


if __name__ == "__main__":
    sys.exit(main())
