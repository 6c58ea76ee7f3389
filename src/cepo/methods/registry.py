"""The methods by name. A room above this one may register its own, and users name theirs by import path."""

import importlib
import os
import sys
from functools import cache

from .method import Method

# A line for each method: the file in this room whose `METHOD` it is.
_FILES = (
    "cepo",
    "cepo_added",
    "rlsd",
    "grpo",
    "opsd",
    "sdpo",
    "rlcsd",
    "rlrt",
    "cscr",
    "pbsd",
    "distilled_rl",
    "vppo",
)

METHODS: dict[str, Method] = {
    method.name: method for method in (importlib.import_module(f"{__package__}.{file}").METHOD for file in _FILES)
}


def register_method(method: Method) -> Method:
    """Make a method known by its name.

    Raises:
        ValueError: If another one has that name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"there is a method {method.name!r} already")
    return method


def find_method(name: str) -> Method:
    """A method by its name, or by its import path, ``package.module:name``.

    Raises:
        ValueError: If there is none, with the names that there are.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(
            f"unknown method {name!r}; there are {', '.join(METHODS)}, and your own by its import path, "
            "package.module:name"
        )
    return _imported(name)


@cache
def _imported(path: str) -> Method:
    module, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path:  # as for reward functions: a file beside the run
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"method: cannot import {path!r}: {error}") from error
    if not isinstance(found, Method):
        raise ValueError(f"method: {path!r} is no cepo.methods.Method but a {type(found).__name__}")
    return found
