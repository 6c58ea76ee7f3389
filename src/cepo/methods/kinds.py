"""Whether a value is of the kind that an option's annotation names, so that a wrong one is refused at once."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "none"}


def check_types(owner: type, values: Mapping[str, Any]) -> None:
    """Refuse values that are not what the annotations of a dataclass say, and numbers that are none.

    Annotations other than plain types, choices and unions of these say nothing here.

    Raises:
        ValueError: Naming the option.
    """
    try:
        hints = get_type_hints(owner)
    except (NameError, TypeError):  # of a method of the user's own, that names what is not there any more
        return
    for name, value in values.items():
        kinds = _kinds(hints.get(name, Any))
        if kinds and not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(_NAMES[kind] for kind in kinds if kind is not NoneType)
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _kinds(hint: Any) -> list[type]:
    """The plain types that an annotation allows; none if it allows others."""
    if get_origin(hint) is Literal:
        return list(dict.fromkeys(type(choice) for choice in get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(hint)]
        return [kind for part in parts for kind in part] if all(parts) else []
    return [hint] if hint in _NAMES else []


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, kind)


def _is_finite(number: Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all that float holds
        return False
