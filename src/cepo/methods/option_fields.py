"""Options as dataclass fields: help text, bounds, and a check that a value has the annotated type."""

import math
import operator
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Option groups of the help page and of docs/options.md, with their titles.
GROUPS = {
    "method": "the method",
    "schedule": "evidence coefficient and schedule",
    "references": "references",
    "hints": "hints",
    "teacher": "teachers",
    "distillation": "distillation",
    "run": "the run",
}
_TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
_COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True)
class OptionField:
    """One option of a dataclass.

    Attributes:
        name: Name of the option.
        type: Its type; strings in annotations are resolved.
        default: Its default.
        help: Its help text.
        group: A key of `GROUPS`.
        bounds: Comparisons with numbers that a value must satisfy, by sign: ``{">": 0, "<": 1}``.
    """

    name: str
    type: Any
    default: Any
    help: str
    group: str
    bounds: Mapping[str, float]

    def check(self, value: Any) -> None:
        """Validate a value.

        Raises:
            ValueError: Naming the option, if the value has another type, is not finite, or is out of bounds.
        """
        if not _has_type(value, self.type):
            raise ValueError(f"{self.name} must be {_type_text(self.type)}, got {value!r}")
        if value is not None and not all(_COMPARISONS[sign](value, bound) for sign, bound in self.bounds.items()):
            wanted = " and ".join(f"{sign} {bound}" for sign, bound in self.bounds.items())
            raise ValueError(f"{self.name} must be {wanted}, got {value}")


def option(default: Any, help: str = "", *, group: str = "method", bounds: Mapping[str, float] | None = None) -> Any:
    """A dataclass field with a help text, an option group and bounds; see `OptionField`.

    A subclass that only changes the default redeclares the field without `option`.
    """
    return field(default=default, metadata={"help": help, "group": group, "bounds": bounds or {}})


def option_fields(owner: type) -> dict[str, OptionField]:
    """The options of a dataclass by name; a field without metadata has that of the base class."""
    return _option_fields(owner)


@cache  # mypy does not take dataclasses as hashable arguments
def _option_fields(owner: type) -> dict[str, OptionField]:
    types, found = get_type_hints(owner), {}
    for one in fields(owner):
        declared = [vars(base).get("__dataclass_fields__", {}).get(one.name) for base in owner.__mro__]
        metadata: Mapping[str, Any] = next((base.metadata for base in declared if base and base.metadata), {})
        if metadata.get("group") == "":  # no option
            continue
        help, group, bounds = metadata.get("help", ""), metadata.get("group", "method"), metadata.get("bounds", {})
        found[one.name] = OptionField(one.name, types[one.name], one.default, help, group, bounds)
    return found


def _has_type(value: Any, wanted: Any) -> bool:
    """Whether a value has a type; types other than plain ones, choices and unions of these are not checked."""
    if get_origin(wanted) is Literal:
        return isinstance(value, str) and value in get_args(wanted)
    if get_origin(wanted) in (Union, UnionType):
        return any(_has_type(value, part) for part in get_args(wanted))
    if wanted in (int, float):
        if not isinstance(value, Integral if wanted is int else Real) or isinstance(value, bool):
            return False
        return abs(value) <= sys.float_info.max if isinstance(value, int) else math.isfinite(value)
    return isinstance(value, wanted) if wanted in (bool, str, NoneType) else True


def _type_text(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(get_args(wanted))}"
    if get_origin(wanted) in (Union, UnionType):
        return " or ".join(_type_text(part) for part in get_args(wanted) if part is not NoneType)
    return _TYPE_NAMES[wanted]
