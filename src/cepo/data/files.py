"""Write files atomically."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces `path` at the end."""
    part = path.with_name(f"{path.name}.part")  # a fixed name, so that the file of a killed process is overwritten
    yield part
    os.replace(part, path)


def write_whole(path: Path, text: str) -> None:
    """Write a text atomically: a killed process leaves the previous file."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
