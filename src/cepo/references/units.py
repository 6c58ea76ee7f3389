"""Units of measurement after a number, in words, symbols or LaTeX."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .notation import without_text_commands

# Abbreviations of units; single letters only after a space.
_ABBREVIATIONS = frozenset(
    "mm cm dm km in ft yd mi kg mg lb lbs oz ml mL mph kph kmh hr hrs min sec ms rad deg Hz kHz kJ kW Pa mol".split()
)
_LETTERS = frozenset("mgshltLNJWVKCF")
_SPELLED = {
    **{"$": "dollar", "%": "percent", r"\degree": "degree", r"\omega": "ohm", "mins": "minute", "kmh": "kph"},
    **{"kmph": "kph", "sq": "square", "cu": "cubic", "celsius": "C", "fahrenheit": "F"},
}
_FILLERS = frozenset(
    "unit units the a an of each about long tall wide high and old away apart".split()
)  # words without meaning after a number
_MATHEMATICS = frozenset(
    "or and if sin cos tan cot sec csc log ln exp max min mod pi sqrt gcd lcm inf is for where with when to pm am "
    "times base all factorial squared cubed hundred dozen score tenth tenths half halves third thirds quarter quarters "
    "below above not minus plus negative less more than fewer matrix by".split()
)
_WORD = r"(?:(?<=[0-9}%\s/.])[A-Za-z]{2,}|(?<=[\s/])[A-Za-z])\.?"
_UNIT = re.compile(
    rf"(?:\s?(?:\\text\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|\\degree\s?[CFK]?|\\Omega|%|\\cdot|/|{_WORD})(?:\s?\^\{{-?\d\}})?)+\.?"
)
_NUMBER_LIKE = re.compile(r"\d|\\pi|\\sqrt|\\frac|\\infty")
_ORDINAL = re.compile(r"(\d)\s?\^?\{?(?:\\text\{)?(?:st|nd|rd|th)\}{0,2}$")
_PIECE = re.compile(r"[A-Za-z]+|\\degree|\\Omega|\^\{?-?\d\}?|/|%")
_EXPRESSION = re.compile(r"[A-Za-z]+(?:\^-?\d)?(?:(?: |/| per )(?:square |cubic )?[A-Za-z]+(?:\^-?\d)?){0,4}")


@dataclass(frozen=True)
class Unit:
    """A unit of measurement.

    Attributes:
        dimensions: Base dimensions with their powers. A noun that is no unit, such as `apple`, is a dimension itself.
        size: Size in base units.
    """

    dimensions: tuple[tuple[str, Any], ...]
    size: Fraction = Fraction(1)


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint  # takes half a second

    registry: Any = pint.UnitRegistry(non_int_type=Fraction)
    for definition in ("dollar = [money] = usd = buck", "cent = dollar / 100", "euro = [money_euro]"):
        registry.define(definition)
    return registry


def split_unit(answer: str) -> tuple[str, Unit | None]:
    """The value and the unit of an answer in `plain` spelling; None without a unit."""
    if answer.startswith(r"\dollar"):
        return answer.removeprefix(r"\dollar").strip(), _parse("dollar")
    if answer.startswith(r"-\dollar"):
        return "-" + answer.removeprefix(r"-\dollar").strip(), _parse("dollar")
    if ordinal := _ORDINAL.search(answer):
        return answer[: ordinal.start() + 1], None
    if (total := sum_of_units(answer)) is not None:
        return total
    for position in range(1, len(answer)):
        if answer[position] not in " \\%/" and not answer[position].isalpha():
            continue
        value, rest = answer[:position].rstrip(), answer[position:]
        found = _UNIT.match(answer, position)
        if found and found.end() == len(answer) and _is_value(value, rest) and _only_units(rest, answer[position - 1]):
            return value, _parse(rest)
    return answer, None


_SUMMAND = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+|\\degree|'{1,2}),? ?(?:and )?")
_MARKS = {"'": "arcminute", "''": "arcsecond"}


def sum_of_units(answer: str) -> tuple[str, Unit] | None:
    """``1 hour 45 minutes`` and ``22^\\circ 30'`` as one value; None for other answers."""
    text = without_text_commands(answer)
    summands = _SUMMAND.findall(text)
    if len(summands) < 2 or _SUMMAND.sub("", text):
        return None
    units = [_parse(_MARKS.get(name, name)) for _, name in summands]
    if len({unit.dimensions for unit in units if unit}) != 1 or not all(units) or units[0] == units[1]:
        return None
    first = units[0]
    sizes = [
        Fraction(number.rstrip(".")) * unit.size for (number, _), unit in zip(summands, units, strict=True) if unit
    ]
    total = sum(sizes, Fraction()) / (first.size if first else 1)
    return f"{total.numerator}/{total.denominator}", first or Unit(())


def _is_value(value: str, rest: str) -> bool:
    if not value or value[-1] in "+-*/^=<>(,_{" or value.count("{") != value.count("}"):
        return False
    if value.endswith((r"\frac", r"\sqrt", r"\cdot", r"\times", "\\")):
        return False
    if re.search(r"\b[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", " ", value)):  # words
        return False
    return _NUMBER_LIKE.search(value) is not None or rest.lstrip().startswith((r"\text", r"\degree"))


def _only_units(rest: str, before: str) -> bool:
    """Whether the words outside of ``\\text`` are units or nouns, not variables and functions."""
    bare = re.sub(r"\\text\{(?:[^{}]|\{[^{}]*\})*\}|\\degree\s?[CFK]?|\\cdot|\\Omega|\^\{-?\d\}", " ", rest)
    words = re.findall(r"[A-Za-z]+", bare)
    apart = before == " " or rest[0] in " \\/"
    for word in words:
        lower = word.lower()
        noun = len(word) > 3 and not {lower, _singular(lower)} & _MATHEMATICS and apart
        known = noun or word in _ABBREVIATIONS or (word in _LETTERS and apart)
        known = known or lower in ("sq", "cu", "per", "feet", "foot") or (lower in _FILLERS and len(lower) > 2)
        if not known:
            return False
    inside = " ".join(re.findall(r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}", rest)).lower().split()
    if set(inside) & (_MATHEMATICS - {"base", "all", "times", "half", "by"}):
        return False
    return bool(words or inside or "%" in rest or r"\degree" in rest or r"\Omega" in rest) and not {
        "or",
        "and",
        "if",
    } & set(inside)


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


@lru_cache(maxsize=1024)
def _parse(text: str) -> Unit | None:
    """The unit that a text names; None for a bare `units`."""
    from pint.errors import PintError

    text = re.sub(r"\([^()]*\)", " ", without_text_commands(text).replace(r"\degree", r" \degree "))
    if scale := re.fullmatch(r"\s*(?:\\degree|degrees?)\s*(?:([CFK])|([cC]elsius)|([fF]ahrenheit))\W*", text):
        return Unit((((scale[1] or scale[2] or scale[3])[0].upper(), 1),))
    words = [_SPELLED.get(piece.lower(), piece) for piece in _PIECE.findall(text)]
    words = [word.strip("{}") for word in words if word.lower() not in _FILLERS]
    if not set(words) - {"square", "cubic"}:  # square units
        return None
    spelled = re.sub(r" ?(\^) ?\{?(-?\d)\}?", r"\1\2", " ".join(words)).replace(" / ", "/")
    if _EXPRESSION.fullmatch(spelled):
        for candidate in (spelled, spelled.lower()):
            try:
                base = _registry().Quantity(Fraction(1), _registry().parse_units(candidate)).to_base_units()
            except (PintError, ValueError, TypeError):  # no unit; decibels and decades, which are logarithms
                continue
            return Unit(tuple(sorted(base.dimensionality.items())), Fraction(base.magnitude))
    return Unit(((" ".join(_singular(word.lower()) for word in words), 1),))
