"""The methods by name. A module above this one may register a method; users name one by import path."""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from ..references.importing import imported
from .method import Method, MethodOptions
from .option_fields import OptionField, option_fields

# The modules whose `METHOD` is registered, in the order of the tables.
_MODULES = (
    *("cepo", "cepo_additive", "rlsd", "grpo", "opsd", "sdpo", "rlcsd", "sdar"),
    *("contrib.rlrt", "contrib.cscr", "contrib.pbsd", "contrib.distilled_rl", "contrib.vppo"),
)

METHODS: dict[str, Method] = {
    method.name: method for method in (import_module(f"{__package__}.{module}").METHOD for module in _MODULES)
}
# Methods of users by import path.
_IMPORTED: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Register a method under its name.

    Raises:
        ValueError: If another method has that name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"there is a method {method.name!r} already")
    return method


def find_method(name: str) -> Method:
    """A method by its name, or by its import path, ``package.module:name``.

    Raises:
        ValueError: If there is no such method.
    """
    if not isinstance(name, str):  # from a YAML file
        raise ValueError(f"method must be a string, got {name!r}")
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        module, _, attribute = name.removesuffix(".py").rpartition(".")
        is_path = module and attribute and "/" not in name
        close = [f"{module}:{attribute}"] if is_path else get_close_matches(name, METHODS, n=1, cutoff=0.88)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"unknown method {name!r}{meant}; choose one of {', '.join(METHODS)}, or the import path of your method, "
            "package.module:name"
        )
    if name not in _IMPORTED:
        found = imported("method", name)
        if not isinstance(found, Method):
            raise ValueError(f"method: {name!r} is a {type(found).__name__}, not a cepo.methods.Method")
        _IMPORTED[name] = found
    return _IMPORTED[name]


def method_options(method: str, **given: Any) -> MethodOptions:
    """The options of a method: the given values over its defaults. See `Method.configure`.

    Args:
        method: Name or import path.
        given: Options of that method.

    Raises:
        ValueError: For an unknown method, an option that it does not have, or a value that the option does not take.
    """
    return find_method(method).configure(**given)


def all_options() -> dict[str, OptionField]:
    """The options of all methods by name, those of imported methods included."""
    found: dict[str, OptionField] = {}
    for method in (*METHODS.values(), *_IMPORTED.values()):
        for name, one in option_fields(method.options).items():
            found.setdefault(name, one)
    return found


def applicable_options(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The options that a method has, and those that are no method's."""
    has, known = option_fields(find_method(method).options), all_options()
    return {name: value for name, value in values.items() if name in has or name not in known}


def own_options(method: str | None) -> dict[str, OptionField]:
    """The options that a method declares beside the shared groups, by name; none without a method."""
    known = {} if method is None else option_fields(find_method(method).options)
    return {name: one for name, one in known.items() if one.group == "method" and name != "negative_advantage_weight"}


def presets() -> dict[str, dict[str, Any]]:
    """The presets of all methods by name, each with its method."""
    return {
        name: {"method": method.name, **values}
        for method in METHODS.values()
        for name, values in method.presets.items()
    }


def preset_options(name: str, method: str | None = None) -> dict[str, Any]:
    """The options of a preset.

    Args:
        name: Name of the preset.
        method: A method whose options are kept, without those that it does not have; None: the preset's method.

    Raises:
        ValueError: If there is no such preset.
    """
    known = presets()
    if name not in known:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(known)}")
    values = known[name]
    return values if method is None else {**applicable_options(values, method), "method": method}


def default_text(name: str) -> str:
    """The default of a method option: the most common one, then those of other methods."""
    values: dict[str, list[str]] = {}
    for method in METHODS.values():
        if name in (known := option_fields(method.options)):
            values.setdefault(_text(known[name].default), []).append(method.name)
    if not values:
        return ""
    common = max(values, key=lambda value: len(values[value]))
    rest = [f"{', '.join(names)}: {value}" for value, names in values.items() if value != common]
    return "; ".join([common, *rest])


def _text(value: Any) -> str:
    if value in (None, ""):
        return "none"
    return value if isinstance(value, str) and value.isidentifier() else repr(value)
