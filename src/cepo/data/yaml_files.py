"""YAML files of the user's: read as data alone, and no more of it than a file of options can hold."""

from pathlib import Path
from typing import Any

import yaml

_LARGEST = 256 * 1024  # bytes
_DEEPEST = 50
_MOST_VALUES = 20_000  # with aliases written out: nine lines can stand for a billion values


def read_yaml(path: Path, option: str = "--config") -> Any:
    """What a file holds; `option` is what errors call it.

    Raises:
        ValueError: If there is no such file, it is not YAML, or it is none that holds options.
    """
    if not path.is_file():
        raise ValueError(f"{option}: there is no such file: {path}")
    if path.stat().st_size > _LARGEST:
        raise ValueError(
            f"{option}: {path} has {path.stat().st_size:,} bytes; a file of options has {_LARGEST:,} at most"
        )
    try:
        return _data(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{option}: {path} is not YAML: {_what(error)}") from error
    except RecursionError:
        raise ValueError(
            f"{option}: {path} cannot be read: it holds more than {_DEEPEST} lists within each other"
        ) from None
    except Exception as error:  # bytes that are no text, a date that is none: what a constructor raises has no one kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{option}: {path} cannot be read: {reason}") from error


def _what(error: yaml.YAMLError) -> str:
    """A parser's error on one line, with its place."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        place = error.problem_mark
        return f"{error.problem or error.context}, line {place.line + 1}, column {place.column + 1}"
    return str(error).splitlines()[0]


def _data(text: str) -> Any:
    # In two parts, so that what aliases stand for is counted before it is built: a merge copies it.
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}, 0) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values in a node, with aliases written out.

    Raises:
        ValueError: If it holds itself, or lies too deep.
    """
    if depth > _DEEPEST:
        raise ValueError(f"it holds more than {_DEEPEST} lists within each other")
    size = known.get(id(node))
    if size == 0:  # begun, and not ended
        raise ValueError("an alias stands for what it is part of")
    if size is None:
        known[id(node)] = 0
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        size = known[id(node)] = 1 + sum(_size(part, known, depth + 1) for part in parts)
    return size
