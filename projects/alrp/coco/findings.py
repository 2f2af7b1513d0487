"""What a check found, and how several findings become one error."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Callable, Iterable, Sequence

from ..errors import UserError

_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One mistake or oddity.

    Attributes:
        severity: "error" (the run cannot succeed) or "warning".
        where: the config key, dataset or file it is in.
        what: what was expected and what was found.
        fix: what to do about it.
    """

    severity: str
    where: str
    what: str
    fix: str


def raise_errors(findings: Iterable[Finding], logger: logging.Logger) -> None:
    """Log the warnings; raise one UserError with a line for each error, if there are any."""
    lines: dict[str, list[str]] = {"error": [], "warning": []}
    for finding in findings:
        lines[finding.severity].append(f"{finding.where}: {finding.what}; {finding.fix}.")
    for line in lines["warning"]:
        logger.warning(line)
    if lines["error"]:
        raise UserError("\n".join(lines["error"]))


def annotation_name(annotation: dict, position: int) -> str:
    """Like "annotation 7"; with its position in the file where it has no id."""
    id_ = repr(annotation["id"]) if "id" in annotation else f"at position {position}"
    return f"annotation {id_}"


def shown(value: object, length: int) -> str:
    """``repr`` of a value of a JSON file, cut off after so many characters."""
    try:
        return repr(value)[:length]
    except ValueError:  # an integer of more digits than Python writes
        return "something with a number of thousands of digits"


def listed(items: Sequence, describe: Callable = str) -> str:
    """Descriptions of the first three items, and how many more there are."""
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(describe(item) for item in items[:_SHOWN]) + more
