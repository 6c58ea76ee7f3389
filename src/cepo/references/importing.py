"""Functions of the user's own, by their import path."""

import importlib
import os
import sys
from typing import Any


class ImportPathError(ValueError):
    """An import path leads nowhere."""


def imported(option: str, path: str) -> Any:
    """What stands at ``module.function`` or ``module:function``; a file beside the run comes first.

    Raises:
        ImportPathError: Naming the option, if there is no such thing.
    """
    module, _, attribute = path.replace(":", ".").rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        # The module itself is not there, rather than one that it imports.
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}.")
        where = ", nor is it a file in the folder that this is run from" if missing else ""
        raise ImportPathError(f"{option}: cannot import {path!r}: {error}{where}") from error
