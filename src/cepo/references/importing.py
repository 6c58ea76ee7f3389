"""Functions of the user's own, by their import path."""

import importlib
import os
import sys
from typing import Any


def imported(option: str, path: str) -> Any:
    """What stands at ``module.function`` or ``module:function``; a file beside the run comes first.

    Raises:
        ValueError: Naming the option, if there is no such thing.
    """
    module, _, attribute = path.replace(":", ".").rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option}: cannot import {path!r}: {error}") from error
