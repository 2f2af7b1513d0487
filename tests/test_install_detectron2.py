"""The Detectron2 installer, run in throw-away environments on a tiny wheel of the same layout."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "install_detectron2.py"
DIST_INFO = "detectron2-0.6.dist-info"

SOURCES = {
    "LabGym/__init__.py": "raise RuntimeError('only the subtree is ours to take')\n",
    "LabGym/detectron2/__init__.py": "__version__ = '0.6'\n",
    "LabGym/detectron2/config/__init__.py": "from LabGym.detectron2 import __version__\n",
    "LabGym/detectron2/modeling/__init__.py": "import LabGym.detectron2.config as config\n",
    "LabGym/detectron2/model_zoo/__init__.py": "NAME = 'LabGym.detectron2.model_zoo'\n",
    "LabGym/detectron2/model_zoo/configs/Base.yaml": "MODEL:\n  MASK_ON: False\n",
    "labgym-2.9.6.dist-info/METADATA": "Metadata-Version: 2.1\nName: labgym\nVersion: 2.9.6\n",
}


def write_wheel(folder: Path, **replaced: str) -> Path:
    """A wheel of ``SOURCES``; ``modeling="..."`` replaces that package's source."""
    sources = {**SOURCES, **{f"LabGym/detectron2/{k}/__init__.py": v for k, v in replaced.items()}}
    path = folder / "labgym-2.9.6-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in sources.items():
            archive.writestr(name, text)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Environment(NamedTuple):
    """An empty virtual environment and what the script is run with in it."""

    python: Path
    purelib: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        return subprocess.run(
            [str(self.python), *arguments], env=environ, capture_output=True, text=True, timeout=120
        )

    def install(self, wheel: Path) -> subprocess.CompletedProcess:
        """Run the script's ``main`` with the hash of ``wheel`` as the pinned one."""
        code = (
            f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
            "import install_detectron2 as m\n"
            f"m.SHA256 = {sha256(wheel)!r}\nsys.exit(m.main(['--wheel', {str(wheel)!r}]))"
        )
        return self.run("-B", "-c", code)

    def detectron2_files(self) -> dict[str, str]:
        """Hash of every installed or staged file, bytecode apart."""
        files = [p for p in self.purelib.rglob("*") if p.is_file() and p.suffix != ".pyc"]
        named = {p.relative_to(self.purelib).as_posix(): sha256(p) for p in files}
        return {name: digest for name, digest in named.items() if "detectron2" in name}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    root = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    python = root / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.check_output([str(python), "-c", code], text=True).strip()
    return Environment(python, Path(purelib))


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_wheel(tmp_path)


@pytest.fixture
def script(load_script):
    return load_script("tools/install_detectron2.py")


def test_installed_tree_is_the_subtree_without_the_foreign_prefix(environment, wheel):
    done = environment.install(wheel)
    assert done.returncode == 0, done.stderr
    for name, text in SOURCES.items():
        installed = environment.purelib / name.replace("LabGym/", "", 1)
        if name.startswith("LabGym/detectron2/"):
            assert installed.read_text() == text.replace("LabGym.", "")
    assert not list(environment.purelib.glob("LabGym*"))
    assert not list(environment.purelib.glob("labgym*"))


def test_metadata_names_version_and_licence(environment, wheel):
    environment.install(wheel)
    code = (
        "from importlib.metadata import distribution; d = distribution('detectron2');"
        "print(d.version, d.metadata['License'], d.read_text('top_level.txt').strip())"
    )
    assert environment.run("-c", code).stdout.split() == ["0.6", "Apache-2.0", "detectron2"]
    licence = environment.purelib / DIST_INFO / "licenses" / "LICENSE"
    assert "Apache License" in licence.read_text()


def test_record_lists_every_file_with_its_hash(environment, wheel):
    environment.install(wheel)
    with open(environment.purelib / DIST_INFO / "RECORD", newline="") as record:
        rows = {name: (digest, size) for name, digest, size in csv.reader(record)}
    assert rows.keys() == environment.detectron2_files().keys()
    assert rows.pop(f"{DIST_INFO}/RECORD") == ("", "")
    for name, (digest, size) in rows.items():
        content = (environment.purelib / name).read_bytes()
        expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={expected}", len(content)), name


def test_pip_uninstall_removes_everything(environment, wheel):
    environment.install(wheel)
    environment.run("-c", "import detectron2.modeling")  # leaves bytecode behind
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python)]
    subprocess.run([*pip, "uninstall", "--yes", "detectron2"], check=True, capture_output=True)
    assert not list(environment.purelib.glob("*detectron2*"))


def test_working_detectron2_is_left_untouched(environment, wheel, tmp_path):
    environment.install(wheel)
    before = environment.detectron2_files()
    other = tmp_path / "other"
    other.mkdir()
    done = environment.install(write_wheel(other, config="VERSION = 2\n"))
    assert done.returncode == 0
    assert "left as it is" in done.stdout
    assert str(environment.purelib / "detectron2") in done.stdout
    assert environment.detectron2_files() == before


def test_broken_detectron2_is_reported_and_left_untouched(environment, wheel):
    package = environment.purelib / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("import no_such_module\n")
    before = environment.detectron2_files()
    done = environment.install(wheel)
    assert done.returncode == 1
    assert "No module named 'no_such_module'" in done.stderr
    assert "not touched" in done.stderr
    assert environment.detectron2_files() == before


def test_metadata_of_another_installer_is_left_untouched(environment, wheel):
    info = environment.purelib / DIST_INFO
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    (info / "INSTALLER").write_text("pip\n")
    before = environment.detectron2_files()
    done = environment.install(wheel)
    assert done.returncode == 1
    assert "pip lists Detectron2 0.6" in done.stderr
    assert environment.detectron2_files() == before


def test_folder_that_is_no_package_is_left_untouched(environment, wheel):
    (environment.purelib / "detectron2").mkdir()
    (environment.purelib / "detectron2" / "notes.txt").write_text("mine\n")
    before = environment.detectron2_files()
    done = environment.install(wheel)
    assert done.returncode == 1
    assert "is in the way" in done.stderr
    assert environment.detectron2_files() == before


def test_wrong_hash_shows_both_and_installs_nothing(environment, wheel, script):
    done = environment.run(str(SCRIPT), "--wheel", str(wheel))
    assert done.returncode == 1
    assert f"expected {script.SHA256}, got {sha256(wheel)}" in done.stderr
    assert "Traceback" not in done.stderr
    assert environment.detectron2_files() == {}


def test_missing_wheel_is_named(environment, tmp_path):
    done = environment.run(str(SCRIPT), "--wheel", str(tmp_path / "absent.whl"))
    assert done.returncode == 1
    assert "absent.whl" in done.stderr
    assert "Traceback" not in done.stderr


def test_copy_that_does_not_import_is_not_installed(environment, tmp_path):
    done = environment.install(write_wheel(tmp_path, modeling="import no_such_module\n"))
    assert done.returncode == 1
    assert "No module named 'no_such_module'" in done.stderr
    assert "requirements.txt" in done.stderr
    assert environment.detectron2_files() == {}


def test_interrupted_run_is_completed_by_the_next(environment, wheel):
    environment.install(wheel)
    complete = environment.detectron2_files()
    # What a run that is killed between its two renames leaves: metadata, and a staging folder.
    stage = environment.purelib / ".detectron2-stage-killed"
    stage.mkdir()
    (environment.purelib / "detectron2").rename(stage / "detectron2")
    assert environment.run("-c", "import detectron2").returncode == 1
    done = environment.install(wheel)
    assert done.returncode == 0, done.stderr
    assert environment.detectron2_files() == complete


def test_python_without_pip_is_told_how_to_get_it(environment):
    done = environment.run(str(SCRIPT))
    assert done.returncode == 1
    assert "python -m ensurepip" in done.stderr


def test_unreachable_index_is_explained(script, tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: refused
    with pytest.raises(script.InstallError, match="check the network.*--wheel PATH"):
        script.download(tmp_path)


def test_old_python_is_refused_with_the_range(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    with pytest.raises(script.InstallError, match=r"needs Python 3\.9 to 3\.13 and this is 3\.8"):
        script.check_interpreter(tmp_path, allow_system=True)


def test_shared_python_needs_the_system_flag(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    with pytest.raises(script.InstallError, match="not in a virtual environment.*--system"):
        script.check_interpreter(tmp_path, allow_system=False)
    script.check_interpreter(tmp_path, allow_system=True)


def test_unwritable_site_packages_is_named(script, tmp_path):
    with pytest.raises(script.InstallError, match="absent cannot be written"):
        script.check_interpreter(tmp_path / "absent", allow_system=True)
