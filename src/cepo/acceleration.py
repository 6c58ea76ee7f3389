"""The one seam of `fast/`, where it is switched on: without that folder everything runs, slower, with the same numbers.

Nothing else imports `cepo.fast`.
"""

import importlib
import importlib.util
from functools import cache
from types import ModuleType


@cache
def fast() -> ModuleType | None:
    """`cepo.fast`, or None where the folder is not there."""
    return importlib.import_module("cepo.fast") if importlib.util.find_spec("cepo.fast") else None
