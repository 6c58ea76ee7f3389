"""The methods by name. A room above this one may register its own, and users name theirs by import path."""

from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..references.importing import ImportPathError, imported
from .faults import guarded_stage, raised
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

# Functions that may be the user's, whose errors are then named.
_STAGES = ("references", "contexts", "evidence", "labels", "refuses", "selects", "placement")

METHODS: dict[str, Method] = {
    method.name: method for method in (import_module(f"{__package__}.{file}").METHOD for file in _FILES)
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
        module, _, attribute = name.removesuffix(".py").rpartition(".")
        spelt = module and attribute and "/" not in name
        close = [f"{module}:{attribute}"] if spelt else get_close_matches(name, METHODS, n=1, cutoff=0.88)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"unknown method {name!r}{meant}; there are {', '.join(METHODS)}, and your own by its import path, "
            "package.module:name"
        )
    return _imported(name)


def _file_of(module: str) -> str | None:
    with suppress(Exception):  # a package around it may be what failed
        return getattr(find_spec(module), "origin", None)
    return None


@cache
def _imported(path: str) -> Method:
    try:
        found = imported("method", path)
    except ImportPathError:
        raise
    except Exception as error:
        said, _ = raised(error, _file_of(path.partition(":")[0]), __file__)
        raise ValueError(f"method: cannot import {path!r}: it {said}") from error
    if not isinstance(found, Method):
        raise ValueError(f"method: {path!r} is no cepo.methods.Method but a {type(found).__name__}")
    stages = {name: getattr(found, name) for name in _STAGES}
    own: dict[str, Any] = {
        name: guarded_stage(stage, f"method {path}: {name}")
        for name, stage in stages.items()
        if stage is not None and not str(getattr(stage, "__module__", "")).startswith("cepo.")
    }
    return replace(found, **own) if own else found
