"""The methods by name. A room above this one may register its own, and users name theirs by import path."""

from difflib import get_close_matches
from functools import cache
from importlib import import_module

from ..references.importing import imported
from .method import Method

# A line for each method: the file in this room whose `METHOD` it is.
_FILES = (
    "cepo",
    "cepo_additive",
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


@cache
def _imported(path: str) -> Method:
    found = imported("method", path)
    if not isinstance(found, Method):
        raise ValueError(f"method: {path!r} is no cepo.methods.Method but a {type(found).__name__}")
    return found
