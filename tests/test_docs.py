"""What the README, the documents and the docstrings show runs as shown, and names what exists."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
import pytest
import yaml

from detectron2.config import get_cfg

import alrp
from alrp import add_alrp_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", ROOT / "DEVELOPERS.md", *sorted((ROOT / "docs").glob("*.md"))]
each_document = pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def shell_lines(document):
    """Commands of the shell blocks, continuations joined and comments removed."""
    text = "\n".join(blocks(document, "bash")).replace("\\\n", " ")
    return [line for line in map(str.strip, text.splitlines()) if line]


# Those of embedding.md run from a wheel, see test_wheel.py.
PYTHON = [
    pytest.param(source, id=f"{document.name}-{i}")
    for document in DOCS
    if document.name != "embedding.md"
    for i, source in enumerate(blocks(document, "python"))
]
COMMANDS = [
    (document.name, shlex.split(line, comments=True))
    for document in DOCS
    for line in shell_lines(document)
    if line.startswith("python ")
]
PROGRAMS = sorted(
    {" ".join(words[1:3] if words[1] == "-m" else words[1:2]) for _, words in COMMANDS}
)


@pytest.mark.parametrize("source", PYTHON)
def test_python_examples_run(source):
    exec(compile(source, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("source", blocks(ROOT / "README.md", "yaml"))
def test_yaml_examples_merge(source, tmp_path):
    example = yaml.safe_load(source)
    base = (ROOT / "configs" / "COCO-Detection" / example.pop("_BASE_")).resolve()
    path = tmp_path / "example.yaml"
    path.write_text(yaml.safe_dump({"_BASE_": str(base), **example}))
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.merge_from_file(str(path))


def anchors(path):
    """Anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@each_document
def test_links_lead_to_files_and_headings_that_exist(document):
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@each_document
def test_files_that_are_named_exist(document):
    rooms = "configs|tools|demo|docs|tests|benchmarks|examples|projects"
    named = re.findall(rf"(?<![\w/.])(?:{rooms})/[\w./-]*\w(?![\w$*{{-])", document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@each_document
def test_configs_that_are_named_exist(document):
    stems = {path.stem for path in (ROOT / "configs").rglob("*.[yp][ay]*")}
    named = set(re.findall(r"(?<!/)\b[a-z]+(?:_[a-z]+)*_[RX]_\d+\w*", document.read_text()))
    assert named <= stems


@each_document
def test_keys_that_are_named_exist(document):
    cfg = get_cfg()
    add_alrp_config(cfg)
    sections = "|".join(key for key, value in cfg.items() if isinstance(value, dict))
    for key in re.findall(rf"\b(?:{sections})(?:\.[A-Z][A-Z_0-9]*)+", document.read_text()):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def run(words, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(alrp.__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=580,
    )


@cache
def helps():
    """Of each program its exit status and output for --help, and what all wrote to stderr."""
    done = run(["tests/helpers/helps.py", *PROGRAMS])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_options_of_the_commands_exist(program):
    used = {
        word.split("=")[0]
        for _, words in COMMANDS
        if " ".join(words[1:]).startswith(program)
        for word in words[len(program.split()) + 1 :]
        if word.startswith("--")
    }
    results, errors = helps()
    status, text = results[program]
    assert status == 0, errors
    assert {option for option in used if option not in text} == set()


@pytest.mark.slow
def test_the_commands_of_the_readme_run_on_a_model_of_the_demo(tmp_path):
    for name in ("configs", "demo", "tools", "train_net.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    sizes = ["--num-train", "16", "--num-val", "2", "--image-size", "64"]
    demo = ["demo/train_demo.py", "--output", "output/demo", *sizes, "SOLVER.MAX_ITER", "20"]
    assert run(demo, tmp_path).returncode == 0
    block = next(b for b in blocks(ROOT / "README.md", "bash") if "output/demo" in b)
    done = subprocess.run(
        ["bash", "-euc", f'python() {{ "{sys.executable}" "$@"; }}\n{block}'],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(alrp.__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / "drawn" / "000001.png").exists()
    assert "oLRP" in done.stdout


def modules_with_examples():
    """Names of the modules of ``alrp.losses``, and of the LRP numbers, with examples."""
    package = Path(alrp.__file__).parent
    paths = [*(package / "losses").rglob("*.py"), package / "evaluation" / "lrp.py"]
    with_examples = sorted(path for path in paths if ">>> " in path.read_text())
    return [".".join(p.relative_to(package.parent).with_suffix("").parts) for p in with_examples]


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples_run(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_the_message_of_a_wrong_class_count_is_where_the_table_says():
    row = re.search(r"a wrong class count, `([\w.]+)`", (ROOT / "DEVELOPERS.md").read_text())
    checks = ROOT / "projects" / "alrp" / "engine" / "checks"
    assert "classes, but {where}" in (checks / row[1]).read_text()


def test_every_loss_has_an_example():
    losses = {f"alrp.losses.{name}" for name in ("alrp_loss", "ap_loss", "rs_loss", "self_balance")}
    assert losses <= set(modules_with_examples())
