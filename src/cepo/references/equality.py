r"""Answer equality.

Answers in the spelling of `notation.plain` are compared part by part: the letter of a choice, the name before ``=``,
lists and brackets, the unit, and the value, by exact arithmetic and math-verify. Answers are untrusted text:
expensive expressions, and text that is not mathematics, are compared as text.
"""

import re
from functools import lru_cache

from .choices import letter_and_text, letter_of, same_words
from .exact import IN_BASE, RANGE, matrix_of, rational, same_clock, squeezed
from .extraction import normalized
from .libraries import (
    DEEPEST,
    LONGEST_FORMULA,
    are_close,
    depth_of,
    is_light,
    is_mathematics,
    limited,
    math_verify_accepts,
    mathruler_accepts,
    same_equation,
)
from .lists import Items
from .names import EQUALS, GEOMETRY, differ, is_equation, name_of, named
from .notation import COMMAND, plain, split_outside
from .units import Unit, split_unit

# Integers, and lists of them in parentheses, need no library call, which takes tens of milliseconds.
_INTEGER = re.compile(r"-?[0-9]+")
_INTEGERS = re.compile(r"\(-?(?:0|[1-9][0-9]*)(?:,\s*-?(?:0|[1-9][0-9]*))+\)")
_LONGEST_CACHED = 2_000  # characters
_LONGEST_PARSED = 1_000  # characters; longer answers are compared as text


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are equal. Symmetric.

    A missing unit, percent sign or name is no difference, but a different one is: ``12`` equals ``12 cm``, and ``12 m``
    does not. Order matters in parentheses, not in sets and bare lists. A decimal approximation is not equal to the
    number.
    """
    # Very long texts are not cached.
    return (_compared if len(one) + len(other) < _LONGEST_CACHED else _compared.__wrapped__)(one, other)


def accepted_by_any_grader(answer: str, reference: str) -> bool:
    """Whether `same_answer`, mathruler or TRL's `accuracy_reward` accepts an answer.

    An answer that any of them accepts may be correct, so it cannot be r-.
    """
    if same_answer(answer, reference):
        return True
    one, other = normalized(answer), normalized(reference)
    if max(len(one), len(other)) > LONGEST_FORMULA:
        return False
    if any(form.fullmatch(one) and form.fullmatch(other) for form in (_INTEGER, _INTEGERS)):
        return False
    return all(map(is_light, (plain(one), plain(other)))) and (
        mathruler_accepts(one, other) or math_verify_accepts(one, other, units=True)
    )


@lru_cache(maxsize=16384)
def _compared(one: str, other: str) -> bool:
    one, other = normalized(one), normalized(other)
    if one == other:
        return True
    for form in (_INTEGER, _INTEGERS):
        if form.fullmatch(one) and form.fullmatch(other):
            return [*map(_digits, _INTEGER.findall(one))] == [*map(_digits, _INTEGER.findall(other))]
    if not one or not other:
        return False
    if max(len(one), len(other)) > _LONGEST_PARSED or max(depth_of(one), depth_of(other)) > 2 * DEEPEST:
        return " ".join(one.casefold().split()) == " ".join(other.casefold().split())
    with limited():
        return _same(plain(one), plain(other))


def _digits(number: str) -> str:
    """Canonical text of an integer; int() refuses more than 4,300 digits."""
    digits = number.lstrip("-").lstrip("0") or "0"
    return f"-{digits}" if number.startswith("-") and digits != "0" else digits


def _same(one: str, other: str, *, choices: bool = True) -> bool:
    """Whether answers in `plain` spelling are equal. `choices`: whether a single letter may be a choice."""
    if squeezed(one) == squeezed(other):
        return True
    if not (is_mathematics(one) or is_mathematics(other)) and same_words(one, other):
        return True
    if choices and (by_letter := _same_choice(one, other)) is not None:
        return by_letter
    if (by_clock := same_clock(one, other)) is not None:
        return by_clock
    ones, others = _candidates(one), _candidates(other)
    if [*ones, *others] != [one, other]:
        return any(_same(a, b) for a in ones for b in others)
    first, second = Items.of(one, _same), Items.of(other, _same)
    if first.kind is None and second.kind is None:
        return _same_item(one, other)
    return first.equal(second, _same)


def _same_choice(one: str, other: str) -> bool | None:
    """Whether two choices have the same letter; None if they are no choices."""
    letters = letter_of(one), letter_of(other)
    if letters[0] and letters[1]:
        return letters[0] == letters[1]
    pairs = letter_and_text(one), letter_and_text(other)
    if pairs[0] and pairs[1]:
        return pairs[0][0] == pairs[1][0] and _same(pairs[0][1], pairs[1][1], choices=False)
    for letter, pair, text in ((letters[0], pairs[1], one), (letters[1], pairs[0], other)):
        if pair:  # compared with a letter, or with the text of a choice
            return letter == pair[0] if letter else _same(pair[1], text, choices=False)
    return None


_BECAUSE = r"(?:since|because|which|where|as|so|attained)\b"
_EXPLANATION = re.compile(
    rf"(?<=\S)(?: ?\\text\{{\s*(?:[(,]|\b{_BECAUSE})| ?\((?:{_BECAUSE}|\\approx|or\b)|, ?{_BECAUSE}"
    r"|(?<=\d) (?:where|when)\b).*"
)
_ABOUT = re.compile(r"^(?:\\text\{)?(?:about|approximately|roughly|exactly|indeed)\}? ")
_APPROXIMATELY = re.compile(r"\\approx ?")


def _candidates(answer: str) -> list[str]:
    """The answer without adverbs and explanations, or both sides of ``\\sqrt{2} \\approx 1.41``."""
    answer = _ABOUT.sub("", _EXPLANATION.sub("", answer)).strip() or answer
    sides = [side.strip() for side in split_outside(answer, _APPROXIMATELY)]
    if len(sides) != 2 or name_of(sides[0]) is not None:
        return [answer]
    return [sides[0], *([sides[1]] if are_close(named(sides[0])[1], sides[1]) else [])]


# Single values --------------------------------------------------------------------------------------------------------


def _other_symbols(one: str, other: str) -> bool:
    """Whether formulas differ in the case of letters or in primes, which math-verify ignores."""
    if not (is_mathematics(one) or is_mathematics(other)):
        return False
    letters = [{*re.findall(r"[A-Za-z]", COMMAND.sub("", text))} for text in (one, other)]
    lower = [{letter.lower() for letter in found} for found in letters]
    primes = [len(re.findall(r"(?<=[A-Za-z])'", text)) for text in (one, other)]
    return (lower[0] == lower[1] and letters[0] != letters[1]) or primes[0] != primes[1]


def _same_item(one: str, other: str) -> bool:
    if (r"\in " in one) != (r"\in " in other):
        return False
    other_symbols = _other_symbols(one, other)
    if is_equation(one) and is_equation(other) and not other_symbols and _are_same_equation(one, other):
        return True
    (one_name, one_value), (other_name, other_value) = named(one), named(other)
    if is_equation(one_value) != is_equation(other_value) or differ(one_name, other_name):
        return False
    if (one_value, other_value) != (one, other):
        return _same(one_value, other_value, choices=False)
    return not other_symbols and _same_quantity(split_unit(one), split_unit(other))


def _are_same_equation(one: str, other: str) -> bool:
    sides = [[side.strip() for side in split_outside(answer, EQUALS)] for answer in (one, other)]
    pairs = all(len(both) == 2 for both in sides) and is_mathematics(one) and is_mathematics(other)
    return pairs and same_equation(*sides)


def _same_quantity(one: tuple[str, Unit | None], other: tuple[str, Unit | None]) -> bool:
    (a, a_unit), (b, b_unit) = one, other
    if a_unit is None or b_unit is None:
        if _same_value(a, b):
            return True
        unit = a_unit or b_unit
        return unit is not None and _scaled_by_no_unit(*((a, b) if a_unit else (b, a)), unit)
    if {a_unit, b_unit} == {_DEGREE, _RADIAN}:
        degrees, radians = (a, b) if a_unit == _DEGREE else (b, a)
        return _same_value(rf"\frac{{({degrees})\pi}}{{180}}", radians)
    if a_unit.dimensions != b_unit.dimensions:
        scales = {unit.dimensions for unit in (a_unit, b_unit) if unit != _DEGREE}
        return len(scales) == 1 and scales <= _SCALES and _same_value(a, b)  # 20 degrees without a temperature scale
    if a_unit.size == b_unit.size:
        return _same_value(a, b)
    ratio = a_unit.size / b_unit.size
    exact = rational(a), rational(b)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] * ratio == exact[1]
    return _same_value(rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}}\cdot ({a})", b)


_PERCENT, _DEGREE, _RADIAN = (split_unit(text)[1] for text in ("1%", r"1\degree", "1 rad"))
_SCALES = {((scale, 1),) for scale in ("C", "F", "K", "celsius", "fahrenheit")}


def _scaled_by_no_unit(value: str, bare: str, unit: Unit) -> bool:
    """50 % is 0.5, and 45 degrees are pi / 4."""
    if unit == _PERCENT:
        exact = rational(value), rational(bare)
        return exact[0] is not None and exact[1] is not None and exact[0] / 100 == exact[1]
    return unit == _DEGREE and r"\pi" in bare and _same_value(rf"\frac{{({value})\pi}}{{180}}", bare)


def _same_value(one: str, other: str) -> bool:
    """Whether two values without name and unit are equal."""
    if squeezed(one) == squeezed(other):
        return True
    exact = rational(one), rational(other)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    if GEOMETRY.search(one) or GEOMETRY.search(other):
        names = name_of(one), name_of(other)
        if names[0] and names[1]:
            return names[0] == names[1]
    if RANGE.fullmatch(one) or RANGE.fullmatch(other):  # 5-6 is not a subtraction
        return False
    bases = IN_BASE.fullmatch(one), IN_BASE.fullmatch(other)
    if bases[0] or bases[1]:  # 1011_2
        numbers = [found[1] if found else text for found, text in zip(bases, (one, other), strict=True)]
        return numbers[0] == numbers[1] and not (bases[0] and bases[1] and bases[0][2] != bases[1][2])
    matrices = matrix_of(one), matrix_of(other)
    if matrices[0] and matrices[1]:
        shapes = [[len(row) for row in matrix] for matrix in matrices if matrix]
        cells = ([cell for row in matrix for cell in row] for matrix in matrices if matrix)
        return shapes[0] == shapes[1] and all(_same(a, b) for a, b in zip(*cells, strict=True))
    if not (is_mathematics(one) and is_mathematics(other)):
        return same_words(one, other)
    return math_verify_accepts(one, other)
