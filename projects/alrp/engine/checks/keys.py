"""Keys of a config: their values, their defaults, and which of them code reads."""

from __future__ import annotations

import copy
import functools
from typing import Any, Iterator

from detectron2.config import CfgNode, get_cfg

from ...config import add_alrp_config

# Of TEST: what a training does with its evaluations.
EVALUATION_KEYS = ("BEST_METRIC", "PATIENCE", "VALIDATION_LOSS", "NUM_PICTURES")


@functools.lru_cache(maxsize=None)
def default_config() -> CfgNode:
    """Config of Detectron2 and this project before anything is set; do not change it."""
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.freeze()
    return cfg


def leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a config that has a default, with its value."""
    for name, value in cfg.items():
        key = f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{key}.")
        elif has_key(default_config(), key):
            yield key, value


def has_key(cfg: CfgNode, key: str) -> bool:
    """Whether a config has a dotted key."""
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, CfgNode) or name not in node:
            return False
        node = node[name]
    return True


def value_of(cfg: CfgNode, key: str) -> Any:
    """Value of a dotted key."""
    return functools.reduce(lambda node, name: node[name], key.split("."), cfg)


def with_value(cfg: CfgNode, key: str, value: Any) -> CfgNode:
    """Unfrozen copy of a config with another value of a dotted key."""
    cfg = cfg.clone()
    cfg.defrost()
    parent, _, name = key.rpartition(".")
    node = value_of(cfg, parent) if parent else cfg
    node[name] = copy.deepcopy(value)
    return cfg


def changed_keys(cfg: CfgNode) -> list[str]:
    """Dotted keys with another value than their default."""
    defaults = default_config()
    return [key for key, value in leaves(cfg) if not _equal(value, value_of(defaults, key))]


def _equal(value: Any, default: Any) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return len(value) == len(default) and all(map(_equal, value, default))
    return value == default


class Reads(dict):
    """Dotted keys in the order of their first reading, shared by all copies of a config."""

    def __deepcopy__(self, memo) -> Reads:
        return self


class RecordingNode(CfgNode):
    """Config that notes which of its keys are read, also through its clones.

    Args:
        cfg: config to copy; it stays as it is.
        reads: where the keys are noted.
        prefix: dotted key of the node, with a dot at its end; "" for the root.
    """

    def __init__(self, cfg: CfgNode | None = None, reads: Reads | None = None, prefix: str = ""):
        super().__init__()
        self.__dict__["_reads"] = Reads() if reads is None else reads
        self.__dict__["_prefix"] = prefix
        for name, value in (cfg or {}).items():
            if isinstance(value, CfgNode):
                value = RecordingNode(value, self._reads, f"{prefix}{name}.")
            self[name] = copy.deepcopy(value)

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if not isinstance(value, CfgNode):
            self._reads[self._prefix + name] = None
        return value

    def get(self, name, default=None):
        """As the parent, and noted."""
        return self[name] if name in self else default
