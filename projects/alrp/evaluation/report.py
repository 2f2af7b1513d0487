"""Summary of per-class LRP results: one dict, its table and its JSON file."""

from __future__ import annotations

import json
import math

from ..files import replacing
from .lrp import OptimalLRP, mean_optimal_lrp

METRICS = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN")


def lrp_summary(per_class: dict[str, OptimalLRP]) -> dict:
    """Means over classes and values of every class, in percent (0 to 100), NaN if undefined.

    Args:
        per_class: optimal LRP of every class by name.
    Returns:
        dict: ``oLRP``, ``oLRP_Loc``, ``oLRP_FP``, ``oLRP_FN`` and ``per_class``, a dict by name of
        the same four keys and ``threshold``, which is a score and no percentage.
    """
    summary: dict = _percent(mean_optimal_lrp(per_class.values()))
    summary["per_class"] = {
        name: {**_percent(result[:4]), "threshold": result.threshold}
        for name, result in per_class.items()
    }
    return summary


def lrp_table(summary: dict) -> str:
    """Text table of a :func:`lrp_summary`: a row per class, then the mean; ``-`` if undefined."""
    head = ["class", *METRICS, "threshold"]
    rows = [
        [name, *(_number(values[key], 3) for key in METRICS), _number(values["threshold"], 4)]
        for name, values in summary["per_class"].items()
    ]
    rows.append(["mean", *(_number(summary[key], 3) for key in METRICS), ""])
    return aligned(head, rows)


def aligned(head: list[str], rows: list[list[str]]) -> str:
    """Text of a table whose last row is a mean: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in [head, *rows]
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def write_summary(summary: dict, path: str) -> None:
    """Write a :func:`lrp_summary` as JSON, ``null`` for NaN; the file appears whole or not at all.

    Raises:
        UserError: if the file cannot be written.
    """
    text = json.dumps(_nan_to_none(summary), indent=2, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def _percent(values) -> dict[str, float]:
    return {key: 100.0 * value for key, value in zip(METRICS, values)}


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _nan_to_none(value):
    if isinstance(value, dict):
        return {key: _nan_to_none(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
