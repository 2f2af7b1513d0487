"""Configs read from YAML files as data, with one clear message for each mistake in them."""

from __future__ import annotations

import difflib
import re
from contextlib import contextmanager
from typing import Iterator
import torch
import yaml

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from ..errors import UserError
from .defaults import add_alrp_config

_TUPLE_TAG = "tag:yaml.org,2002:python/tuple"
_MAP_TAG = "tag:yaml.org,2002:map"
# What yacs says of a key, and of a value of another type.
_NO_KEY = re.compile(r"Non-existent (?:config )?key: (\S+)")
_TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(\w+)'> vs\. <class '(\w+)'>\) with values \(.* vs\. (.*)\) "
    r"for config key: (\S+)",
    re.DOTALL,
)
_KINDS = {
    "bool": "True or False",
    "float": "a number with a decimal point",
    "int": "a whole number",
    "list": "a list",
    "str": "text",
    "tuple": "a list",
}
# What Detectron2 raises for keys and values that do not fit.
_MERGE_ERRORS = (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError)


def load_config(config_file: str, overrides: list[str] | None = None) -> CN:
    """Config of a YAML file, read as data only: no Python tag in it or its bases runs code.

    Without a GPU ``MODEL.DEVICE`` starts as "cpu"; the file and the overrides may change it.

    Args:
        config_file: path; "" for the defaults.
        overrides: keys and values in turn, like ``["SOLVER.BASE_LR", "0.01"]``.

    Raises:
        UserError: if the file or an override does not fit.
    """
    if config_file.endswith(".py"):
        raise UserError(
            f"--config-file {config_file!r} is a LazyConfig; pass it to "
            "lazyconfig_train_net.py, or name a .yaml file."
        )
    _check_pairs(overrides or [])
    cfg = get_cfg()
    add_alrp_config(cfg)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    try:
        if config_file:
            with _strict_safe_load():
                cfg.merge_from_file(config_file, allow_unsafe=False)
        cfg.merge_from_list(overrides or [])
    except yaml.constructor.ConstructorError as error:
        raise UserError(_tag_mistake(config_file, error)) from error
    except RecursionError as error:
        raise UserError(
            f"config: the _BASE_ of {config_file!r} leads back to a file that builds on it; let "
            "it name a file that does not."
        ) from error
    except (*_MERGE_ERRORS, yaml.YAMLError) as error:
        raise UserError(_config_mistake(config_file, error)) from error
    return cfg


def _check_pairs(overrides: list[str]) -> None:
    """Each key has a value; ``KEY=VALUE`` is how a LazyConfig takes them."""
    joined = next((word for word in overrides[::2] if "=" in word), "")
    if joined:
        key, _, value = joined.partition("=")
        raise UserError(
            f"config: expected KEY VALUE pairs, but got {joined!r}; write {key} {value} with a "
            "blank between them."
        )
    if len(overrides) % 2:
        is_key = re.compile(r"[A-Z][A-Z0-9_.]*").fullmatch
        word = next((word for word in overrides[::2] if not is_key(word)), overrides[-1])
        raise UserError(
            f"config: expected KEY VALUE pairs, but got {len(overrides)} words; look at {word!r} "
            "and what is before it, and give each key one value, lists in quotes."
        )


@contextmanager
def _strict_safe_load() -> Iterator[None]:
    """Let ``yaml.safe_load`` read tuples, and refuse keys that stand twice.

    Every other Python tag runs code and stays refused. Of a repeated key YAML keeps the last value.

    Detectron2 calls ``yaml.safe_load``, which takes no loader. What it reads elsewhere in the
    process is not changed.
    """
    before = yaml.SafeLoader.yaml_constructors
    own = {_TUPLE_TAG: _construct_tuple, _MAP_TAG: _construct_map}
    yaml.SafeLoader.yaml_constructors = {**before, **own}
    try:
        yield
    finally:
        yaml.SafeLoader.yaml_constructors = before


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.Node) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


def _construct_map(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Iterator[dict]:
    seen: set = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            mark = key.start_mark
            raise ValueError(
                f"{mark.name}, line {mark.line + 1}, holds the key {key.value!r} a second time, so "
                "that its first value would be lost; write it once"
            )
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
    yield from loader.construct_yaml_map(node)


def _config_mistake(config_file: str, error: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    message = str(error.args[0] if isinstance(error, KeyError) else error).strip().rstrip(".")
    if isinstance(error, (AttributeError, TypeError)):  # where Detectron2 looks for keys
        message = f"{config_file!r}, or a _BASE_ of it, is empty or holds something else than keys"
    message = _TYPE_MISMATCH.sub(_retyped, message) + _meant(message)
    return (
        f"config: {message}. Check --config-file {config_file!r} and the KEY VALUE pairs, "
        "which must come after all --options."
    )


def _retyped(found: re.Match) -> str:
    """What yacs says of a value of another type, in words, with a value that would do."""
    expected, got, value, key = found.groups()
    fix = ""
    if (expected, got) == ("float", "int"):
        fix = f"; write {value}.0"
    elif expected in ("tuple", "list") and got in ("str", "int", "float"):
        fix = f"; write [{value!r}]" if got == "str" else f"; write [{value}]"
    return f"{key}: expected {_KINDS.get(expected, expected)}, but got {value}{fix}"


def _meant(message: str) -> str:
    """The key that may be meant by one that does not exist."""
    found = _NO_KEY.search(message)
    if found is None:
        return ""
    key, keys = found[1], list(_dotted(load_config("")))
    if key in keys:
        *nodes, last = key.split(".")
        return f"; in a file, write it as {': {'.join(nodes)}: {{{last}: ...{'}' * len(nodes)}"
    close = difflib.get_close_matches(key.upper(), keys, n=2)
    return f"; write {' or '.join(close)} if that is meant" if close else ""


def _dotted(cfg: CN, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CN):
            yield from _dotted(value, f"{prefix}{name}.")


def _tag_mistake(config_file: str, error: yaml.constructor.ConstructorError) -> str:
    mark = error.problem_mark
    tag = re.search(r"tag:yaml.org,2002:(python/[^\s']+)", error.problem or "")
    if tag is None:
        return _config_mistake(config_file, error)
    return (
        f"config: {mark.name}, line {mark.line + 1}, holds the Python tag !!{tag[1]}, which would "
        "run code. Configs are read as data only: write the value itself, as numbers, text, lists "
        "or !!python/tuple [...]; a base of Detectron2 with such a tag must be copied and changed."
    )
