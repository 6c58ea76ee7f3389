"""Exact values of numbers, ratios, times of day and matrices."""

import re
from fractions import Fraction

from .notation import without_text_commands

_LONGEST = 200  # characters


def squeezed(text: str) -> str:
    """A text without thousands separators and redundant spaces."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?:,\d{3})*\b)", "", text)
    return re.sub(r"\s(?![0-9A-Za-z])|(?<![0-9A-Za-z])\s", "", text)


_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_SPACED = re.compile(r"([+-]?[0-9]{1,3})((?: [0-9]{3})+)(\.[0-9]+)?")
_MIXED = re.compile(
    r"([+-]?)([0-9]{1,9}) ?(?:\\frac\{([0-9]{1,9})\}\{([0-9]{1,9})\}|(?: |\+)([0-9]{1,9})/([0-9]{1,9}))"
)
_SCIENTIFIC = re.compile(r"(.+?)(?:\\times ?|\\cdot ?|\*|x)10\^\{?(-?[0-9]{1,4})\}?")
_POWER = re.compile(r"(-?)\(?(-?[0-9]{1,6})\)?\^\{?(-?[0-9]{1,4})\}?")
_REPEATING = re.compile(r"([+-]?[0-9]{0,9})\.([0-9]{0,9})\\overline\{([0-9]{1,9})\}")
_QUOTIENT = re.compile(r"\(?([^/()]{1,60})\)?/\(?([^/()]{1,60})\)?")
_NUMBER_WORDS = dict(
    zip(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
        range(13),
        strict=True,
    )
)


def rational(text: str, depth: int = 0) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number or power; None for other text."""
    text = squeezed(text) if " " not in text.strip() else text.strip()
    if len(text) > _LONGEST or depth > 4 or not text:
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.rstrip(".") if not text.startswith(".") else text)
    if text.lower() in _NUMBER_WORDS:
        return Fraction(_NUMBER_WORDS[text.lower()])
    if text.lower() in ("half", "a half", "one half", "one-half"):
        return Fraction(1, 2)
    if spaced := _SPACED.fullmatch(text):
        return Fraction("".join(part or "" for part in spaced.groups()).replace(" ", ""))
    if mixed := _MIXED.fullmatch(text):
        sign, whole, *parts = mixed.groups()
        numerator, denominator = (int(part) for part in parts if part)
        if not 0 < numerator < denominator or (sign and "+" in text[1:]):  # -2 + 1/2 is no mixed number
            return None
        return (-1 if sign == "-" else 1) * (int(whole) + Fraction(numerator, denominator))
    text = re.sub(r"\s", "", text)
    if repeating := _REPEATING.fullmatch(text):
        whole, fixed, again = repeating.groups()
        rest = Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(fixed))
        return (Fraction(f"{whole.lstrip('+-') or 0}.{fixed or 0}") + rest) * (-1 if whole.startswith("-") else 1)
    if re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]{1,3}", text):
        return Fraction(text)
    if power := _POWER.fullmatch(text):
        base, exponent = int(power[2]), int(power[3])
        if (base == 0 and exponent < 0) or abs(exponent) > 2000:
            return None
        if power[2].startswith("-") and "(" not in text:  # -2^4 is -(2^4)
            return -(Fraction(-base) ** exponent)
        return Fraction(base) ** exponent * (-1 if power[1] else 1)
    if scientific := _SCIENTIFIC.fullmatch(text):
        factor = rational(scientific[1], depth + 1)
        exponent = int(scientific[2])
        return factor * Fraction(10) ** exponent if factor is not None and abs(exponent) < 400 else None
    sign = -1 if text.startswith("-") else 1
    unsigned = text.removeprefix("+").removeprefix("-")
    quotient = _QUOTIENT.fullmatch(unsigned)
    if halves := _fraction(unsigned) or (quotient and (quotient[1], quotient[2])):
        above, below = (rational(half, depth + 1) for half in halves)
        return sign * above / below if above is not None and below else None
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        return rational(text[1:-1], depth + 1)
    return None


def _fraction(text: str) -> tuple[str, str] | None:
    r"""Numerator and denominator if the text is one ``\frac{}{}``."""
    if not text.startswith(r"\frac{"):
        return None
    ends, depth = [], 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if character == "}" and depth == 0:
            ends.append(place)
    if len(ends) != 2 or ends[1] != len(text) - 1:
        return None
    return text[6 : ends[0]], text[ends[0] + 2 : -1]


RANGE = re.compile(r"\d+(?:\.\d+)? ?- ?\d+(?:\.\d+)?")
IN_BASE = re.compile(r"([0-9][0-9A-F]*)_\{?([0-9]{1,2}|\\text\{[a-z]+\})\}?")
_MATRIX = re.compile(r"\\begin\{([a-z]*matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)


def matrix_of(value: str) -> list[list[str]] | None:
    """The cells of a matrix; None for other values."""
    value = re.sub(r"\\(?:begin|end) ?\{\\text\{(\w+)\}\}", r"\\begin{\1}", value)
    found = _MATRIX.fullmatch(value.strip().strip("()[]|").strip())
    if found is None:
        return None
    rows = [row for row in found[2].split(r"\\") if row.strip()]
    return [[cell.strip() for cell in row.split("&")] for row in rows]


_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?(?::00)? ?(?:([ap])\.? ?m\b\.?)?(?: o'?clock)?", re.IGNORECASE)


def same_clock(one: str, other: str) -> bool | None:
    """Whether two times of day, or two ratios, are equal; None for other texts."""
    texts = [without_text_commands(text) for text in (one, other)]
    clocks = [_CLOCK.fullmatch(text) for text in texts]
    if clocks[0] and clocks[1] and (clocks[0][3] or clocks[1][3] or (clocks[0][2] and clocks[1][2])):
        return _minutes(clocks[0]) == _minutes(clocks[1])
    as_ratios = [re.sub(r"(?<=\d) ?\bto\b ?(?=\d)", ":", text) for text in texts]
    first, second = ([rational(part.strip()) or Fraction() for part in text.split(":")] for text in as_ratios)
    if max(len(first), len(second)) == 1 or not (all(first) and all(second)):
        return None
    if len(first) == len(second):
        if ":" not in texts[0] + texts[1]:  # from 5 to 10
            return first == second
        return all(a * second[0] == b * first[0] for a, b in zip(first, second, strict=True))
    if sorted((len(first), len(second))) == [1, 2]:  # 3:4 equals 3/4, 12:30 does not equal 1230
        (number,), (above, below) = sorted((first, second), key=len)
        return ("/" in "".join(texts) or r"\frac" in "".join(texts)) and number * below == above
    return False


def _minutes(clock: re.Match[str]) -> int:
    hour = int(clock[1]) % 12 if clock[3] else int(clock[1])
    return 60 * (hour + 12 * (clock[3] is not None and clock[3].lower() == "p")) + int(clock[2] or 0)
