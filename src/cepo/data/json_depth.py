"""Lists within lists in a JSON file: the parser behind `datasets` ends the whole process at ten thousand."""

import re
from pathlib import Path

DEEPEST = 1000
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[{]|[\]}]")


def check_depths(folder: Path) -> None:
    """`check_depth` of every JSON file in a folder, and in those within it.

    Raises:
        ValueError: Naming the file and the line.
    """
    for path in sorted(folder.rglob("*.json*")):
        if path.suffix in (".json", ".jsonl") and path.is_file():
            try:
                check_depth(path)
            except ValueError as error:
                raise ValueError(f"{path.relative_to(folder)}: {error}") from error


def check_depth(path: Path) -> None:
    """Refuse a file with more than `DEEPEST` lists or objects within each other, in time in proportion to its size.

    Raises:
        ValueError: Naming the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            # Few lines are so long, and of those fewer have so many brackets.
            if len(line) > DEEPEST and line.count(b"[") + line.count(b"{") > DEEPEST and depth_of(line) > DEEPEST:
                raise ValueError(f"line {number} has more than {DEEPEST:,} lists or objects within each other")


def depth_of(line: bytes) -> int:
    """How many lists and objects within each other a line of JSON opens; brackets within strings are none."""
    deepest = depth = 0
    for found in _BRACKETS.finditer(_STRINGS.sub(b"", line)):
        depth += 1 if found[0] in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
