"""YAML files of options."""

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path, option: str = "--config") -> dict[str, Any]:
    """The options in a YAML file of `name: value` lines."""
    if not path.is_file():
        raise ValueError(f"{option}: there is no such file: {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an invalid date
        raise ValueError(f"{option}: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{option}: {path} must hold options as `name: value` lines")
    return content
