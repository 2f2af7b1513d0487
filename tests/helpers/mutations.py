"""Seeded mutations of JSON files: what exporters, editors and transfers do to them.

None of them makes another sound file of the same kind: each is to be without effect, or noticed.
"""

from __future__ import annotations

import copy
import json
import numpy as np
from typing import Iterator, NamedTuple

LONG_NUMBER = "9" * 5000
NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e999")
# Text that stands for a value in a JSON file, whatever the value was before.
REPLACEMENTS = ("null", '"text"', '""', "true", "[]", "{}", "[[1]]", LONG_NUMBER, '"\\ud800"')


class Mutation(NamedTuple):
    """What was done, and the bytes of the file after it."""

    label: str
    data: bytes


def mutations(content: object, fixed: frozenset, count: int, seed: int) -> Iterator[Mutation]:
    """``count`` mutated files.

    Args:
        content: of the file.
        fixed: keys of numbers that may have any value, so that only another type is a mistake.
        count: how many to make.
        seed: the same files come from the same seed.
    """
    rng = np.random.default_rng(seed)
    whole = list(_whole_files(content))
    kinds = [_drop, _replace, _not_finite, _as_text, _negate, _repeat, _refer, _add, _shuffle]
    for i in range(count):
        if i < len(whole):
            yield whole[i]
        else:
            yield kinds[i % len(kinds)](copy.deepcopy(content), fixed, rng)


def _whole_files(content: object) -> Iterator[Mutation]:
    """Encodings, cuts and layouts."""
    text = json.dumps(content)
    yield Mutation("empty file", b"")
    yield Mutation("UTF-16", text.encode("utf-16"))
    yield Mutation("byte order mark", text.encode("utf-8-sig"))
    yield Mutation("Latin-1", text.replace("disc", "d\u00efsc").encode("latin-1"))
    yield Mutation("binary", bytes(range(256)))
    yield Mutation("Python's repr", repr(content).encode())
    yield Mutation("trailing text", text.encode() + b" x")
    yield Mutation("twice", text.encode() * 2)
    yield Mutation("in a list", f"[{text}]".encode())
    yield Mutation("a number", b"5")
    yield Mutation("null", b"null")
    yield Mutation("deep nesting", b"[" * 100_000)
    yield Mutation("comments", b"// made by hand\n" + text.encode())
    yield Mutation("indented", json.dumps(content, indent=2).encode())
    yield Mutation(
        "line ends of Windows", json.dumps(content, indent=2).replace("\n", "\r\n").encode()
    )
    yield from (Mutation(f"cut at {k}/8", text.encode()[: len(text) * k // 8]) for k in range(1, 8))


def _paths(content: object, path: tuple = ()) -> list[tuple]:
    """Paths of all values below the top."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += _paths(value, (*path, key))
    return found


def _choose(content: object, rng, wanted) -> tuple[object, object, tuple]:
    """Container, key and path of a random value that is ``wanted``."""
    chosen = [path for path in _paths(content) if wanted(path, _at(content, path))]
    path = chosen[rng.integers(len(chosen))]
    return _at(content, path[:-1]), path[-1], path


def _at(content: object, path: tuple) -> object:
    for key in path:
        content = content[key]
    return content


def _put(content, container, key, text: str) -> bytes:
    """The file with ``text`` in place of one value."""
    container[key] = "@@here@@"
    return json.dumps(content).replace('"@@here@@"', text).encode()


def _drop(content, fixed, rng) -> Mutation:
    container, key, path = _choose(content, rng, lambda p, v: isinstance(p[-1], str))
    del container[key]
    return Mutation(f"drop {path}", json.dumps(content).encode())


def _replace(content, fixed, rng) -> Mutation:
    container, key, path = _choose(content, rng, lambda p, v: True)
    text = REPLACEMENTS[rng.integers(len(REPLACEMENTS))]
    if (key, text) == ("iscrowd", "true"):  # a sound file with another crowd
        text = "null"
    return Mutation(f"{path} = {text[:20]}", _put(content, container, key, text))


def _not_finite(content, fixed, rng) -> Mutation:
    container, key, path = _choose(content, rng, lambda p, v: _is_number(v))
    text = NOT_FINITE[rng.integers(len(NOT_FINITE))]
    return Mutation(f"{path} = {text}", _put(content, container, key, text))


def _as_text(content, fixed, rng) -> Mutation:
    container, key, path = _choose(content, rng, lambda p, v: _is_number(v))
    container[key] = str(container[key])
    return Mutation(f"{path} in quotes", json.dumps(content).encode())


def _negate(content, fixed, rng) -> Mutation:
    container, key, path = _choose(
        content, rng, lambda p, v: _is_number(v) and not fixed.intersection(p)
    )
    container[key] = -container[key] - 2
    return Mutation(f"{path} = {container[key]}", json.dumps(content).encode())


def _repeat(content, fixed, rng) -> Mutation:
    container, key, path = _choose(content, rng, lambda p, v: isinstance(v, dict))
    if isinstance(container, dict):
        container = content["images"]
        key, path = 0, ("images", 0)
    container.append(copy.deepcopy(container[key]))
    return Mutation(f"{path} twice", json.dumps(content).encode())


def _refer(content, fixed, rng) -> Mutation:
    container, key, path = _choose(content, rng, lambda p, v: p[-1] in ("image_id", "category_id"))
    container[key] = int(rng.integers(900, 999))
    return Mutation(f"{path} = {container[key]}", json.dumps(content).encode())


def _add(content, fixed, rng) -> Mutation:
    container, key, path = _choose(content, rng, lambda p, v: isinstance(v, dict))
    container[key]["made by"] = {"tool": ["x", None]}
    return Mutation(f"{path} with another key", json.dumps(content).encode())


def _shuffle(content, fixed, rng) -> Mutation:
    """Records are in no order; equal scores would be."""
    lists = (
        [content] if isinstance(content, list) else [content[k] for k in ("images", "annotations")]
    )
    chosen = lists[rng.integers(len(lists))]
    rng.shuffle(chosen)
    return Mutation("records in another order", json.dumps(content).encode())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
