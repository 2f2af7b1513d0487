"""What the README and the docstrings show runs as shown."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pathlib import Path
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
MODULES = ["alrp.losses.alrp_loss", "alrp.losses.ap_loss"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run():
    assert blocks("python")
    for source in blocks("python"):
        exec(compile(source, "README.md", "exec"), {})


def test_yaml_examples_merge(tmp_path):
    from detectron2.config import get_cfg

    from alrp.config import add_alrp_config

    assert blocks("yaml")
    for source in blocks("yaml"):
        example = yaml.safe_load(source)
        base = (ROOT / "configs" / "COCO-Detection" / example.pop("_BASE_")).resolve()
        path = tmp_path / "example.yaml"
        path.write_text(yaml.safe_dump({"_BASE_": str(base), **example}))
        cfg = get_cfg()
        add_alrp_config(cfg)
        cfg.merge_from_file(str(path))


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b[A-Z]+_(?:RESULTS|PLACEHOLDER)\b", README)


def test_files_named_in_the_readme_exist():
    named = re.findall(r"\b(?:configs|tools|demo|docs|tests)/[\w./-]+\w", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0 and result.failed == 0
