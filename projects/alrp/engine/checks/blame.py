"""Which key of a config is to blame for a trial that failed."""

from __future__ import annotations

import re
from typing import Any, Callable

from detectron2.config import CfgNode

from ...coco import Finding
from ...errors import UserError
from .keys import default_config, has_key, value_of, with_value
from .trial import Trial, TrialFailure, try_config

_MOST_SUSPECTS = 3


def blame(
    cfg: CfgNode, trial: Trial, *, for_training: bool, without_overrides: CfgNode | None = None
) -> Finding:
    """The error of a failed trial, with the key that is to blame.

    A key is to blame if the trial gets further with its value in ``without_overrides``, or else
    with its default.

    Args:
        cfg: the config.
        trial: of it.
        for_training: as for the trial.
        without_overrides: the config as its file has it, without those of the command line.
    """
    failure, defaults = trial.failure, default_config()
    if isinstance(failure.error, UserError):  # it begins with the key
        key = str(failure.error).split()[0].rstrip(":")
        if has_key(defaults, key):
            default = value_of(defaults, key)
            other = try_config(with_value(cfg, key, default), for_training=for_training)
            works = {} if other.failure else {key: default}
            return error_of(failure, {key: value_of(cfg, key)}, works)
    for base in filter(None, (without_overrides, defaults)):
        candidates = {
            key: value_of(cfg, key)
            for key in reversed(trial.reads)
            if has_key(base, key) and value_of(cfg, key) != value_of(base, key)
            # Another architecture by default would leave the others without their parts.
            and (base is not defaults or key != "MODEL.META_ARCHITECTURE")
        }

        def fails_without(key: str) -> TrialFailure | None:
            other = with_value(cfg, key, value_of(base, key))
            return try_config(other, for_training=for_training).failure

        keys = blamed(failure, candidates, fails_without)
        if keys:
            others = {key: value_of(base, key) for key in keys}
            return error_of(failure, {key: candidates[key] for key in keys}, others)
    return error_of(failure, {}, {})


def blamed(
    failure: TrialFailure,
    candidates: dict[str, Any],
    fails_without: Callable[[str], TrialFailure | None],
) -> list[str]:
    """Those of the candidates without whose value the run gets further.

    Args:
        failure: what is to be explained.
        candidates: keys and their values, the likeliest first.
        fails_without: what fails when a key has another value; None if nothing.

    Returns:
        list[str]: one key if its name or value stands in the message, otherwise up to three.
    """
    text, keys = str(failure.error), []
    mentioned = [key for key, value in candidates.items() if _is_mentioned(key, value, text)]
    for key in mentioned:
        after = fails_without(key)
        is_other = after and after.step >= failure.step and str(after.error) != text
        if after is None or is_other:
            return [key]
    for key in candidates:
        if key in mentioned:
            continue
        after = fails_without(key)
        if after is None or after.step > failure.step:
            keys.append(key)
            if len(keys) == _MOST_SUSPECTS:
                break
    return keys


def error_of(
    failure: TrialFailure, values: dict[str, Any], others: dict[str, Any], *, sign: str = " "
) -> Finding:
    """The error that names keys, their values, what failed, and values that work.

    Args:
        failure: what is to be explained.
        values: the keys to blame, with the values that they have.
        others: the same keys with values that work; empty if none is known.
        sign: between a key and its value on a command line.
    """
    where = " or ".join(values) or "config"
    text = " ".join(str(failure.error).split())
    if isinstance(failure.error, UserError):
        what = text.removeprefix(where).lstrip(": ").rstrip(".")
    else:
        what = f"{failure.name} failed"
        what += f" with {', '.join(map(repr, values.values()))}" if values else ""
        what += f": {type(failure.error).__name__}: {text}".rstrip(".: ")
    fixes = [f"{key}{sign}{value!r} works" for key, value in others.items()]
    correct = f"correct {where if values else 'the keys it is built from'}"
    return Finding("error", where, what, ", or ".join(fixes) or correct)


def _is_mentioned(key: str, value: Any, text: str) -> bool:
    """Whether the message holds the key, the last part of it, or its value or part of that."""
    name = key.rpartition(".")[2]
    if re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE):
        return True
    elements = value if isinstance(value, (list, tuple)) else [value]
    return any(
        re.search(rf"(?<![\w.]){re.escape(str(x))}(?![\w.])", text)
        for x in [value, *elements]
        if str(x) and not isinstance(x, bool)
    )
