"""Which folder of the package may import what, and what no file of it may contain."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path
from typing import Iterator
import pytest

import alrp

PACKAGE = Path(__file__).resolve().parents[1] / "projects" / "alrp"
FILES = sorted(PACKAGE.rglob("*.py"))

ANY = frozenset({"config", "data", "modeling", "losses", "evaluation", "checkpoint", "vis"})
# Room -> the other rooms it may import. "errors" and "files" are open to all but `losses`, which
# others embed, "head_nodes" to all that read a config; a room that is not listed here fails the
# test: decide where it stands, then add it.
MAY_IMPORT = {
    "": frozenset(),  # alrp/__init__.py loads by name, on demand
    "errors": frozenset(),
    "files": frozenset({"errors"}),
    "memory": frozenset(),
    "head_nodes": frozenset({"errors"}),
    "coco": frozenset({"errors"}),
    "losses": frozenset(),
    "modeling": frozenset({"losses", "errors", "files", "head_nodes"}),
    "data": frozenset({"coco", "errors", "files"}),
    "evaluation": frozenset({"coco", "errors", "files"}),
    "checkpoint": frozenset({"config", "losses", "errors", "files", "head_nodes"}),
    "vis": frozenset({"errors", "files"}),
    "export": frozenset({"errors", "files"}),
    "evaluate": frozenset({"evaluation", "vis", "errors", "files"}),
    "config": frozenset({"modeling", "data", "errors", "files"}),
    "model_zoo": frozenset({"config"}),
    "engine": ANY | {"errors", "files", "memory", "head_nodes", "coco", ""},
}
LOSSES_FOREIGN = sys.stdlib_module_names | {"torch", "numba", "numpy", "triton"}


def imported_names(tree: ast.AST, module: str) -> Iterator[str]:
    """Absolute names of everything imported anywhere in a file, functions included.

    Args:
        tree: the parsed file.
        module: the dotted name of the package that relative imports of the file start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), module)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            argument = node.args[0]
            if name in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield resolve_name(argument.value, module)


def room_of(name: str, rooms: set[str]) -> str:
    """The room of a dotted name below ``alrp``; "" for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in rooms else ""


def package_of(path: Path) -> str:
    """Dotted name of the package a file lies in."""
    return ".".join(["alrp", *path.relative_to(PACKAGE).parent.parts])


def own_room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def forbidden_imports(source: str, room: str, package: str, rooms: set[str]) -> list[str]:
    """Imports of a file's text that its room does not allow, as absolute names."""
    found = []
    for name in imported_names(ast.parse(source), package):
        top = name.split(".")[0]
        if top == "projects":
            found.append(name)
        elif top == "alrp":
            target = room_of(name, rooms)
            if target != room and target not in MAY_IMPORT[room]:
                found.append(name)
        elif room == "losses" and top not in LOSSES_FOREIGN:
            found.append(name)
    return found


def absolute_self_imports(source: str) -> list[int]:
    """Lines that import this package by its absolute name."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        if any(name.split(".")[0] in ("alrp", "projects") for name in names):
            lines.append(node.lineno)
    return lines


def unwelcome_calls(source: str) -> list[str]:
    """``print(``, debuggers and ``.cuda(`` in a file's text, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in ("print", "breakpoint"):
                found.append(f"{function.id}( in line {node.lineno}")
            elif isinstance(function, ast.Attribute) and function.attr in ("cuda", "set_trace"):
                found.append(f".{function.attr}( in line {node.lineno}")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            if any(name in ("pdb", "ipdb") for name in names):
                found.append(f"pdb in line {node.lineno}")
    return found


def module_name(path: Path) -> str:
    """Dotted name of the module a file holds."""
    return package_of(path) + ("" if path.stem == "__init__" else f".{path.stem}")


def import_graph(sources: dict[str, str], packages: set[str]) -> dict[str, set[str]]:
    """Module -> the modules among ``sources`` that it imports, at any time.

    What a package loads on demand counts too: where a file defines ``__getattr__`` (PEP 562), each
    of its texts that names a module beside it.

    Args:
        sources: module name -> text of its file.
        packages: those of the modules that are an ``__init__.py``.
    """
    graph = {}
    for module, source in sources.items():
        tree = ast.parse(source)
        package = module if module in packages else module.rpartition(".")[0]
        names = set(imported_names(tree, package))
        if any(getattr(node, "name", "") == "__getattr__" for node in tree.body):
            constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
            names |= {f"{package}.{text.lstrip('.')}" for text in constants if str(text) == text}
        # "from .module import name" is an import of the module.
        targets = {n if n in sources else n.rpartition(".")[0] for n in names}
        graph[module] = targets & set(sources) - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that each import the next one, the first again at the end; [] without a circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


ROOMS = {own_room(path) for path in FILES} - {""}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


@each_file
def test_file_imports_only_what_its_room_may(path):
    assert own_room(path) in MAY_IMPORT, "a new room: add it to MAY_IMPORT"
    assert forbidden_imports(path.read_text(), own_room(path), package_of(path), ROOMS) == []


@each_file
def test_imports_within_the_package_are_relative(path):
    assert absolute_self_imports(path.read_text()) == []


@each_file
def test_file_has_no_print_debugger_or_cuda_call(path):
    assert unwelcome_calls(path.read_text()) == []


def test_there_is_no_circle_of_imports():
    sources = {module_name(path): path.read_text() for path in FILES}
    packages = {package_of(path) for path in FILES if path.stem == "__init__"}
    graph = import_graph(sources, packages)
    assert circle(graph) == []
    # The graph is not empty for a reason that hides circles.
    assert "alrp.config" in graph["alrp"]
    assert "alrp.losses.backends.kernels" in graph["alrp.losses.backends.compiled"]


@pytest.mark.parametrize(
    "last",
    [
        "from . import first",
        "from .first import name",
        "import alrp.first",
        "def late():\n    from .first import name",
        "importlib.import_module('.first', __package__)",
        "from . import lazy",
    ],
)
def test_a_circle_of_imports_is_found(last):
    sources = {
        "alrp": "",
        "alrp.first": "from .second import name",
        "alrp.second": "def late():\n    from . import third",
        "alrp.third": last,
        "alrp.lazy": "_MODULE_OF = {'name': 'first'}\ndef __getattr__(name): ...",
    }
    graph = import_graph(sources, {"alrp"})
    assert {"alrp.first", "alrp.second", "alrp.third"} <= set(circle(graph))
    assert circle({**graph, "alrp.third": set()}) == []


@pytest.mark.parametrize(
    "source, room, package",
    [
        ("from ..config import add_alrp_config", "modeling", "alrp.modeling"),
        ("from ...data import shapes", "modeling", "alrp.modeling.meta_arch"),
        ("def f():\n    from .. import evaluation", "data", "alrp.data"),
        ("import_module('..modeling', __package__)", "data", "alrp.data"),
        ("def f():\n    importlib.import_module('alrp.engine')", "config", "alrp"),
        ("from . import engine", "", "alrp"),
        ("from .. import add_alrp_config", "evaluation", "alrp.evaluation"),
        ("import detectron2.layers", "losses", "alrp.losses"),
        ("def f():\n    import fvcore", "losses", "alrp.losses"),
        ("from ..errors import UserError", "losses", "alrp.losses"),
        ("import projects.alrp", "engine", "alrp.engine"),
    ],
)
def test_walk_finds_a_forbidden_import(source, room, package):
    rooms = set(MAY_IMPORT) - {""}
    assert len(forbidden_imports(source, room, package, rooms)) == 1


@pytest.mark.parametrize(
    "source, room, package",
    [
        ("from ...losses import alrp_loss", "modeling", "alrp.modeling.meta_arch"),
        ("from .ranking import step_sum", "losses", "alrp.losses"),
        ("from . import ranking", "losses", "alrp.losses"),
        ("import math, torch\nfrom numba import njit", "losses", "alrp.losses"),
        ("from . import data, modeling", "config", "alrp"),
        ("from .. import __version__, config", "engine", "alrp.engine"),
        ("from detectron2.data import transforms", "data", "alrp.data"),
    ],
)
def test_walk_lets_an_allowed_import_pass(source, room, package):
    assert forbidden_imports(source, room, package, set(MAY_IMPORT) - {""}) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    print(x)",
        "breakpoint()",
        "import pdb",
        "from pdb import post_mortem",
        "y = x.cuda()",
        "model.head.cuda(0)",
    ],
)
def test_unwelcome_calls_are_found(source):
    assert len(unwelcome_calls(source)) == 1


BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run_without(blocked: set[str], code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter that cannot import the ``blocked`` packages."""
    script = BLOCK.format(blocked=blocked) + f"sys.path.insert(0, {str(PACKAGE.parent)!r})\n" + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_losses_work_without_detectron2():
    code = (
        "import torch, alrp.losses as losses\n"
        "logits = torch.tensor([2.0, 0.0], requires_grad=True)\n"
        "out = losses.alrp_loss(logits, torch.tensor([1, 0]), torch.tensor([0.25]))\n"
        "(out.cls + out.loc).backward()\n"
    )
    done = run_without({"detectron2", "fvcore", "pycocotools", "PIL", "cv2"}, code)
    assert done.returncode == 0, done.stderr


def test_losses_work_without_numba_and_say_what_it_costs():
    code = (
        "import torch\n"
        "from alrp.losses import ap_loss\n"
        "logits = torch.tensor([0.3, 0.0], requires_grad=True)\n"
        "for _ in range(2):\n"
        "    ap_loss(logits, torch.tensor([1, 0])).backward()\n"
        "print(*logits.grad.tolist())\n"  # twice -+ 0.35 / 1.35
    )
    done = run_without({"numba", "torchvision"}, code)
    assert done.returncode == 0, done.stderr
    assert [float(x) for x in done.stdout.split()] == pytest.approx([-0.7 / 1.35, 0.7 / 1.35])
    assert done.stderr.count("pip install -U numba") == 1


@pytest.mark.parametrize("error", ["AttributeError('types')", "OSError()", "SystemError('abi')"])
def test_a_numba_that_fails_in_any_way_costs_time_only(tmp_path, error):
    (tmp_path / "numba.py").write_text(f"raise {error}")
    code = (
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch\n"
        "from alrp.losses import ap_loss\n"
        "print(ap_loss(torch.tensor([0.3, 0.0]), torch.tensor([1, 0])).item())\n"
    )
    done = run_without(set(), code)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.35 / 1.35)
    assert error.split("(")[0] in done.stderr and "pip install" in done.stderr


def test_missing_detectron2_is_explained_where_it_is_first_needed():
    done = run_without({"detectron2"}, "from alrp import add_alrp_config")
    assert done.returncode == 1
    assert "ImportError: alrp needs Detectron2" in done.stderr
    assert "tools/install_detectron2.py" in done.stderr
    assert "INSTALL.md" in done.stderr


def test_import_of_the_package_loads_nothing_foreign():
    done = run_without({"torch", "numpy", "detectron2"}, "import alrp; print(alrp.__version__)")
    assert done.returncode == 0, done.stderr


def test_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        alrp.no_such_name


def test_exports_are_listed_and_load():
    assert set(alrp.__all__) <= set(dir(alrp))
    for name in alrp.__all__:
        assert getattr(alrp, name) is not None
