"""The part of a COCO dataset that is of some classes."""

from __future__ import annotations

import difflib
from typing import Collection, Sequence

from .findings import Finding


def of_classes(content: dict, names: Collection[str]) -> dict:
    """A dataset with the categories of these names and their annotations; all of it without names.

    Images stay, also those without an annotation that is left.

    Args:
        content: of a file in which :func:`check_annotations` found no error.
        names: of classes.
    """
    if not names:
        return content
    categories = [c for c in content["categories"] if c["name"] in names]
    kept = {**content, "categories": categories}
    if "annotations" in content:
        ids = {category["id"] for category in categories}
        kept["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
    return kept


def check_class_names(
    where: str, content: dict, names: Sequence[str], *, key: str = "DATASETS.CLASSES"
) -> list[Finding]:
    """The dataset has these classes, which a user named by ``key``."""
    known = [category["name"] for category in content["categories"]]
    unknown = [name for name in names if name not in known]
    if not unknown:
        return []
    close = [difflib.get_close_matches(name, known, n=1, cutoff=0.5) for name in unknown]
    fix = ", ".join(f"write {best[0]!r}" for best in close if best) or "correct the names"
    more = ", ..." if len(known) > 20 else ""
    what = f"there is no class {', '.join(map(repr, unknown))} in {where}, but there are "
    what += f"{', '.join(known[:20])}{more}"
    return [Finding("error", key, what, fix)]
