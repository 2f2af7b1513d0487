"""Why ids may be unknown: another type, or numbers of classes in place of their ids."""

from __future__ import annotations

from typing import Mapping

from .findings import listed


def type_hint(given: list, known: set) -> str:
    """What is wrong if ids were written as text on one side and as numbers on the other."""
    twins = {str(id_): id_ for id_ in known}
    mismatch = [value for value in given if str(value) in twins]
    if not mismatch:
        return ""
    twin = twins[str(mismatch[0])]
    kinds = ("text", "numbers") if isinstance(mismatch[0], str) else ("numbers", "text")
    return f"these ids are {kinds[0]} ({mismatch[0]!r}), those listed are {kinds[1]} ({twin!r})"


def name_hint(given: list, id_by_name: Mapping[str, object]) -> str:
    """What is wrong if images or classes are given by name instead of id."""
    names = [value for value in given if value in id_by_name]
    if not names:
        return ""
    return f"these are names, not ids: the id of {names[0]!r} is {id_by_name[names[0]]!r}"


def ids_by_file_name(images: list) -> dict[str, object]:
    """Ids of images by what tools write for the name of a file: with or without folder, ending."""
    ids: dict[str, object] = {}
    for image in images:
        path = image.get("file_name")
        if isinstance(path, str):
            last = path.replace("\\", "/").rpartition("/")[2]
            for name in (path, last, last.rpartition(".")[0]):
                ids.setdefault(name, image["id"])
    return ids


def index_hint(used: set, known: set) -> str:
    """What is wrong if annotations or detections name the classes by index instead of id."""
    for first in (0, 1):
        if used <= set(range(first, first + len(known))):
            listed_ids = listed(sorted(known, key=str), repr)
            hint = f"; all look like numbers of the classes, counted from {first}, in place of "
            return f"{hint}their ids {listed_ids}, so that those of other classes are wrong too"
    return ""
