"""Every config file loads by itself and is written as the others are."""

from __future__ import annotations

import re
from pathlib import Path
import pytest
import yaml

from detectron2.config import get_cfg

from alrp.config import add_alrp_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
LEAVES = [path for path in FILES if not path.name.startswith("Base-")]


def name_of(path):
    return str(path.relative_to(CONFIGS))


def bases_of(path):
    """Files that a config names as its bases, in the order of merging."""
    bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
    return [(path.parent / base).resolve() for base in ([bases] if type(bases) is str else bases)]


def chains_of(path):
    """Every way from a config up to a file without a base, as lists of files."""
    return [[path, *chain] for base in bases_of(path) for chain in chains_of(base)] or [[path]]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_loads_and_names_no_machine(path):
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.merge_from_file(str(path))
    # Plain YAML: fails on a tag that would run Python.
    assert "DEVICE" not in yaml.safe_load(path.read_text()).get("MODEL", {})
    assert not [x for entry in cfg.DATASETS.COCO_FORMAT for x in entry[1:] if x.startswith("/")]
    assert cfg.VERSION == 2


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_a_file_builds_on_is_a_base(path):
    is_quick = path.parent.name == "quick_schedules"  # a quick schedule of that very config
    assert is_quick or all(base.name.startswith("Base-") for base in bases_of(path))


@pytest.mark.parametrize("path", LEAVES, ids=name_of)
def test_no_file_is_merged_twice_and_chains_are_short(path):
    chains = chains_of(path)
    bases = [chain[-1] for chain in chains]
    assert len(set(bases)) == len(bases)
    assert max(map(len, chains)) <= 4


def test_every_base_is_used():
    used = {base for path in FILES for base in bases_of(path)}
    # Or it is merged by benchmarks/compare_configs.py.
    results = (ROOT / "docs" / "results.md").read_text()
    overlays = re.findall(r"--overlay configs/(\S+\.yaml)", results)
    assert set(FILES) - set(LEAVES) <= used | {CONFIGS / name for name in overlays}
