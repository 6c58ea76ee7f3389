"""Files that others read later: there whole, or as they were before, even if the process is killed as it writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when all is written."""
    part = path.with_name(f"{path.name}.part")  # the same each time, so that what a killed process left is overwritten
    yield part
    os.replace(part, path)


def write_whole(path: Path, text: str) -> None:
    """Write a text, or leave what was there."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
