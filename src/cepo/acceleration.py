"""The only import of `cepo.fast`. Without that folder everything runs slower, with the same numbers to rounding."""

import importlib
import importlib.util
from functools import cache
from types import ModuleType


@cache
def fast() -> ModuleType | None:
    """The package `cepo.fast`; None if its folder has been deleted."""
    return importlib.import_module("cepo.fast") if importlib.util.find_spec("cepo.fast") else None
