"""User functions by import path."""

import importlib
import os
import sys
from typing import Any


class ImportPathError(ValueError):
    """An import path cannot be imported."""


def imported(option: str, path: str) -> Any:
    """The object at ``module.function`` or ``module:function``. Import paths also resolve from the current directory.

    Raises:
        ImportPathError: Naming the option, if the path cannot be imported.
    """
    module, _, attribute = path.replace(":", ".").rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        # The module of the path is missing, rather than one that it imports.
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}.")
        where = "; the current directory has no such file either" if missing else ""
        raise ImportPathError(f"{option}: cannot import {path!r}: {error}{where}") from error
