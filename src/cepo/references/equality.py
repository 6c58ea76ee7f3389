r"""Answer equality: whether two answers are the same one in other words.

Answers are compared piece by piece in the spelling of `notation.plain`: the letter of a choice, the name before ``=``,
lists and brackets, the unit, and then the value, by exact arithmetic, math-verify and mathruler. An answer is untrusted
text: expressions that would take long, and text that is no mathematics, are compared as text.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from .exact import IN_BASE, matrix_of, rational, same_clock, squeezed
from .extraction import normalised
from .libraries import (
    COMMAND,
    DEEPEST,
    FORMULA,
    LONGEST_FORMULA,
    TRL,
    depth_of,
    is_light,
    is_mathematics,
    math_verify_accepts,
    mathruler_accepts,
    same_equation,
)
from .notation import plain, split_outside, without_text_commands
from .units import Unit, split_unit

# Whole numbers, and lists of them in parentheses: they need no library, which takes tens of milliseconds.
_INTEGER = re.compile(r"-?[0-9]+")
_INTEGERS = re.compile(r"\(-?(?:0|[1-9][0-9]*)(?:,\s*-?(?:0|[1-9][0-9]*))+\)")
_LONGEST_REMEMBERED = 2_000  # characters
_LONGEST_READ = 1_000  # characters; longer answers are compared as text
_MOST_PARTS = 12  # of a list; each part of a set is compared with each of the other


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are spellings of the same one. Symmetric.

    A missing unit, percent sign or name is no difference, another one is: ``12`` and ``12 cm`` are the same, ``12 m``
    and ``12 cm`` are not. Parentheses keep their order, sets and bare lists do not. A decimal approximation of another
    number is another number.
    """
    # Equal texts of a megabyte are compared, and not held in memory.
    return (_compared if len(one) + len(other) < _LONGEST_REMEMBERED else _compared.__wrapped__)(one, other)


def accepted_by_any_grader(answer: str, reference: str) -> bool:
    """Whether `same_answer`, mathruler or TRL's `accuracy_reward` takes an answer for the reference.

    An answer that one of them accepts may be correct, and cannot serve as r-.
    """
    if same_answer(answer, reference):
        return True
    one, other = normalised(answer), normalised(reference)
    if max(len(one), len(other)) > LONGEST_FORMULA:
        return False
    if any(form.fullmatch(one) and form.fullmatch(other) for form in (_INTEGER, _INTEGERS)):
        return False
    return all(map(is_light, (plain(one), plain(other)))) and (
        mathruler_accepts(one, other) or math_verify_accepts(one, other, TRL)
    )


@lru_cache(maxsize=16384)
def _compared(one: str, other: str) -> bool:
    one, other = normalised(one), normalised(other)
    if one == other:
        return True
    for form in (_INTEGER, _INTEGERS):
        if form.fullmatch(one) and form.fullmatch(other):
            return [*map(_digits, _INTEGER.findall(one))] == [*map(_digits, _INTEGER.findall(other))]
    if not one or not other:
        return False
    if max(len(one), len(other)) > _LONGEST_READ or max(depth_of(one), depth_of(other)) > 2 * DEEPEST:
        return _same_words(one, other)
    return _same(plain(one), plain(other))


def _digits(number: str) -> str:
    """A whole number as text in one way; int() refuses more than 4,300 digits."""
    digits = number.lstrip("-").lstrip("0") or "0"
    return f"-{digits}" if number.startswith("-") and digits != "0" else digits


def _same(one: str, other: str) -> bool:
    """Answers in `plain` spelling."""
    if re.sub(r"\s", "", one) == re.sub(r"\s", "", other):
        return True
    if _same_words(one, other):
        return True
    if (by_letter := _same_choice(one, other)) is not None:
        return by_letter
    if (by_clock := same_clock(one, other)) is not None:
        return by_clock
    if (readings := _readings(one)) or _readings(other):
        return any(_same(a, b) for a in readings or [one] for b in _readings(other) or [other])
    first, second = _Items.of(one), _Items.of(other)
    if first.kind is None and second.kind is None:
        return _same_item(one, other)
    return first.same(second)


_BECAUSE = r"(?:since|because|which|where|as|so|attained)\b"
_EXPLANATION = re.compile(rf"(?<=\S)(?: ?\\text\{{\s*(?:[(,]|\b{_BECAUSE})| ?\({_BECAUSE}).*")
_APPROXIMATELY = re.compile(r"\\approx ?")


def _readings(answer: str) -> list[str]:
    """An answer, without an explanation behind it, and both sides of ``\\sqrt{2} \\approx 1.414``."""
    shorter = _EXPLANATION.sub("", answer).strip()
    found = [shorter] if shorter != answer else []
    sides = [side.strip() for side in split_outside(answer, _APPROXIMATELY)]
    if len(sides) > 1 and _name(sides[0]) is None:
        found += sides
    return found


# Choices --------------------------------------------------------------------------------------------------------------

_BEFORE_LETTER = r"(?:the )?(?:correct |right )?(?:option|choice|answer|statement)?(?: is)?:? ?"
_LETTER = re.compile(rf"(?i:{_BEFORE_LETTER})[(\[]?([A-Ja-j])[)\]]?[.:)]?")
_LETTER_AND_TEXT = re.compile(
    rf"(?i:{_BEFORE_LETTER})"
    r"(?:\(([A-Ja-j])\)|([A-J])\)|([A-J])[.:](?! ?[A-Z]\b| ?\d+:)|([A-J]),(?= [a-z])|"
    r"([A-J]) [-\u2013\u2014] ?(?=[A-Za-z\d]))"
    r"[ :.,]*(\S.*)"
)
_NAMED_LETTER = re.compile(r"(?i:option|choice) ?\(?([A-J])\)?\b[ :.,)]*(.*)")


def _same_choice(one: str, other: str) -> bool | None:
    """Whether two choices have the same letter; None where they are no choices."""
    texts = without_text_commands(one), without_text_commands(other)
    alone = [_LETTER.fullmatch(text) for text in texts]
    if alone[0] and alone[1]:
        return alone[0][1].upper() == alone[1][1].upper()
    with_text = [_letter_and_text(text) for text in texts]
    if with_text[0] and with_text[1]:
        return with_text[0][0] == with_text[1][0]
    for letter, pair, rest in ((alone[0], with_text[1], 1), (alone[1], with_text[0], 0)):
        if letter and pair:
            return letter[1].upper() == pair[0]
        if pair and not letter:  # the text of a choice without its letter
            return _same(pair[1], (one, other)[1 - rest])
    return None


def _letter_and_text(text: str) -> tuple[str, str] | None:
    found = _LETTER_AND_TEXT.fullmatch(text) or _NAMED_LETTER.fullmatch(text)
    if found is None:
        return None
    letter, rest = next(group for group in found.groups()[:-1] if group), found.groups()[-1]
    return (letter.upper(), rest) if rest else None


# Names before `=` -----------------------------------------------------------------------------------------------------

_EQUALS = re.compile(r"(?<![<>:=])=+|\\approx ?|\\equiv ?(?!.*mod)|\\in ?(?![a-z])|:=|\\Rightarrow ?")
# `\text{The area is } 12`, `Area: 12`
_IS = re.compile(
    r"(?:\\text\{[^{}]*(?:\b(?:is|are|equals)|:|=)\s*\} ?|.{1,40}? (?:is|are|equals) |[A-Za-z][A-Za-z' ]{2,}: ?)(\S.*)"
)
_ANGLE = r"\\(?:angle|widehat|overset|overarc)"
_DECORATIONS = re.compile(
    rf"m(?={_ANGLE})|\\(?:overline|overrightarrow|overleftrightarrow|widehat|hat|vec|bar|overarc|angle|triangle|text|odot|"
    r"mathbb|mathcal)(?![A-Za-z])|\\overset\{\\frown\}|\\frown|[\s{}|']|\^\{?\\prime\}?"
)
_GREEK = r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|varphi|omega|Delta|Omega)"
_SYMBOL = re.compile(
    r"(?:\\(?:sin|cos|tan|cot|sec|csc|log|ln|det|max|min) ?)?"
    rf"(?:[A-Za-z]{{1,7}}|{_GREEK})?(?:_?[A-Za-z0-9]{{1,6}})?(?:\([\w,\\+-]{{1,12}}\))?"
)


def _name(text: str) -> str | None:
    """The name that a side of an equation is: a symbol, "" for words such as `Area`; None where it is a formula."""
    words = without_text_commands(text)
    if re.fullmatch(r"[A-Za-z\\][A-Za-z' \\]*", words) and re.search(r"[a-z]{3}", COMMAND.sub("", words)):
        return ""
    symbol = _DECORATIONS.sub("", text)
    if re.fullmatch(r"[A-Za-z]{1,3}[(\[].{1,30}[)\]]", symbol):  # P(sum = 8), E[X]
        return symbol
    if not symbol or not _SYMBOL.fullmatch(symbol) or (symbol[0].isdigit() and "angle" not in text):
        return None
    letters = re.sub(r"[_\\]", "", symbol)
    if re.fullmatch(r"[A-Z]{2,3}", letters):  # segment AB is BA, angle ABC is CBA
        return min(letters, letters[::-1])
    return letters


def _named(answer: str) -> tuple[str | None, str]:
    """The name and the value of an answer such as ``AB = 45``; the name is None where there is none."""
    sides = [side.strip() for side in split_outside(answer, _EQUALS)]
    if len(sides) == 1:
        found = _IS.fullmatch(answer)
        return ("", found[1].strip()) if found else (None, answer)
    if not all(sides):
        return None, answer
    if (name := _name(sides[0])) is not None:
        return name, sides[-1]
    if len(sides) == 2 and (name := _name(sides[1])) is not None:
        return name, sides[0]
    # A chain of numbers, and a formula of names such as `AB + BC`, end in the value that they are equal to.
    is_number = rational(sides[-1]) is not None or not re.search(r"[A-Za-z]", COMMAND.sub("", split_unit(sides[-1])[0]))
    symbols = re.fullmatch(r"[A-Za-z+*/\s{}()_'\\-]+", _DECORATIONS.sub("", sides[0])) and r"\text" not in sides[0]
    if is_number and symbols and "^" not in sides[0]:
        return "", sides[-1]
    return (
        ("", sides[-1]) if all(not re.search(r"[A-Za-z]", COMMAND.sub("", side)) for side in sides) else (None, answer)
    )


# Lists, sets, tuples, intervals ---------------------------------------------------------------------------------------

_SEPARATORS = re.compile(r"[,;]|\\text\{,?\s*(?:and|or)\s*\}| ?\b(?:and|or)\b ?")
_UNION = re.compile(r"\\cup ?")
_RELATION = re.compile(r"\\le ?(?![a-z])|\\ge ?(?![a-z])|<=|>=|<|>")
_OPEN = {"(": "(", "[": "[", r"\{": "{", r"\langle": "(", "]": "("}
_CLOSED = {")": ")", "]": "]", r"\}": "}", r"\rangle": ")", "[": ")"}
_ALL_REALS = re.compile(r"\\mathbb\{?\s?R\}?|\\mathbb ?R|(?i:all real numbers|all reals)")
_ALL_BUT = re.compile(r"(?:[a-z] ?\\ne ?|\\mathbb\{?\s?R\}? ?(?:\\setminus|\\backslash|-) ?\\\{)([^,{}]+)(?:\\\})?")


class _Items:
    """The parts of an answer.

    Attributes:
        kind: The brackets around them, "" for a bare list, ``cup`` for a union, None for a single value.
        parts: In `plain` spelling.
    """

    def __init__(self, kind: str | None, parts: Sequence[str], name: str | None = None):
        self.kind, self.parts, self.name = kind, list(parts), name

    @classmethod
    def of(cls, answer: str) -> "_Items":
        parts = _parts(answer)
        if len(parts) > 1:
            ranges = [_interval(part) for part in parts]
            if all(ranges):  # x < 1 or x > 3
                return cls("cup", [found[1] for found in ranges if found])
            return cls("", [value for part in parts for value in _plus_minus(part)])
        name, value = _named(answer)
        if found := _interval(value):
            name, value = found
        if point := re.match(r"[A-Z]'{0,2}(?=\(.*,.*\)$)", value):  # A(3, 4)
            name, value = point[0], value[point.end() :]
        value, _ = (value, None) if value[-1:] in ")]}" and value[:1] in "([\\" else split_unit(value)
        value = value.strip()
        if _ALL_REALS.fullmatch(value):
            value = r"(-\infty,\infty)"
        if without := _ALL_BUT.fullmatch(value):
            value = rf"(-\infty,{without[1]})\cup({without[1]},\infty)"
        if len(pieces := split_outside(value, _UNION)) > 1:
            return cls("cup", pieces, name)
        if (inside := _bracketed(value)) is not None:
            kind, text = inside
            parts = _parts(text, thousands=False)
            if len(parts) > 1 or kind == "{}":
                return cls(kind, [value for part in parts for value in _plus_minus(part)], name)
        if len(values := _plus_minus(value)) > 1:
            return cls("", values, name)
        if name is not None and len(parts := _parts(value)) > 1:
            return cls("", parts, name)
        return cls(None, [answer])

    def same(self, other: "_Items") -> bool:
        for a, b in ((self, other), (other, self)):  # AC for A, C
            if a.kind == "" and b.kind is None and re.fullmatch(r"[A-J]{2,5}", b.parts[0]):
                return sorted(a.parts) == sorted(b.parts[0])
        if self.kind is None or other.kind is None:
            # A set of one value is that value.
            single = all(len(one.parts) == 1 for one in (self, other)) and "{}" in (self.kind, other.kind)
            return single and _same(self.parts[0], other.parts[0])
        if len(self.parts) != len(other.parts) or len(self.parts) > _MOST_PARTS:
            return False
        if self.name and other.name and self.name != other.name:
            return False
        kinds = {self.kind, other.kind}
        if kinds <= {"", "{}"} or kinds == {"cup"}:
            return _same_in_any_order(self.parts, other.parts)
        if len(kinds) == 2 and ("" not in kinds or kinds & {"{}", "cup"}) and (len(self.parts) == 2 or "{}" in kinds):
            return False  # an open and a closed interval, a set and a point
        ones, others = self._in_order(), other._in_order()
        return all(_same(one, another) for one, another in zip(ones, others, strict=True))

    def _in_order(self) -> list[str]:
        """The values, of ``y = 5, x = 3`` by their names."""
        named = [_named(part) for part in self.parts]
        names = [name for name, _ in named]
        if self.kind == "" and all(names) and len(set(names)) == len(names):
            return [value for _, value in sorted(named, key=lambda pair: pair[0] or "")]
        return self.parts


def _same_in_any_order(ones: Sequence[str], others: Sequence[str]) -> bool:
    left = list(others)
    for one in ones:
        found = next((place for place, other in enumerate(left) if _same(one, other)), None)
        if found is None:
            return False
        del left[found]
    return True


_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,)\d{3})+(?![\d,])")


def _parts(answer: str, *, thousands: bool = True) -> list[str]:
    """The parts of a list; commas between groups of three digits separate none outside of brackets."""
    if thousands or (re.search(r",0\d\d\b", answer) and " " not in answer):
        answer = _THOUSANDS.sub(lambda found: re.sub(r"[{},]", "", found[0]), answer)
    parts = [part.strip() for part in split_outside(answer.replace("{,}", ""), _SEPARATORS)]
    return [part for part in parts if part] or [answer]


def _bracketed(value: str) -> tuple[str, str] | None:
    """The kind of brackets around a value and the text in them; None where they do not enclose all of it."""
    opening = next((sign for sign in _OPEN if value.startswith(sign)), None)
    closing = next((sign for sign in _CLOSED if value.endswith(sign)), None)
    if opening is None or closing is None or len(value) < len(opening) + len(closing):
        return None
    inside = value[len(opening) : len(value) - len(closing)]
    depth = 0
    for character in re.sub(r"\\[{}]", lambda found: found[0][1], inside):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
    if opening == "]" or (closing == "[" and opening != "["):  # ]1, 2[ as in Europe
        return _OPEN[opening] + _CLOSED[closing], inside.strip()
    return (_OPEN[opening] + _CLOSED[closing], inside.strip()) if depth == 0 else None


def _plus_minus(value: str) -> list[str]:
    """Both values of ``2 \\pm 3``."""
    if value.count(r"\pm") + value.count(r"\mp") != 1:
        return [value]
    return [re.sub(r"\\[pm]m ?", sign, value).removeprefix("+") for sign in "+-"]


def _interval(answer: str) -> tuple[str | None, str] | None:
    """The name and the interval of an inequality in one name; None where the answer is none."""
    sides = [side.strip() for side in split_outside(answer, _RELATION)]
    signs = [sign.strip() for sign in _RELATION.findall(answer)]
    if len(sides) != len(signs) + 1 or len(sides) not in (2, 3) or not all(sides):
        return None
    names = [_name(side) for side in sides]
    up = [sign in ("<", "<=", r"\le") for sign in signs]
    strict = [sign in ("<", ">") for sign in signs]
    if len(sides) == 3:
        if names[1] is None or up[0] != up[1]:
            return None
        low, high = (0, 2) if up[0] else (2, 0)
        ends = strict if up[0] else strict[::-1]
        return names[1], f"{'(' if ends[0] else '['}{sides[low]},{sides[high]}{')' if ends[1] else ']'}"
    place = 0 if names[0] is not None else 1
    if names[place] is None:
        return None
    bound, below = sides[1 - place], up[0] == (place == 0)  # x < 3, 3 > x
    if below:
        return names[place], rf"(-\infty,{bound}{')' if strict[0] else ']'}"
    return names[place], rf"{'(' if strict[0] else '['}{bound},\infty)"


# Single values --------------------------------------------------------------------------------------------------------


def _same_item(one: str, other: str) -> bool:
    (one_name, one_value), (other_name, other_value) = _named(one), _named(other)
    if _are_same_equation(one, other):
        return True
    if (one_name, other_name) != (None, None) and _is_equation(one_value) == _is_equation(other_value):
        if one_name and other_name and one_name != other_name:
            return False
        if one_value != one or other_value != other:
            return _same(one_value, other_value)
    return _same_quantity(split_unit(one_value), split_unit(other_value))


def _are_same_equation(one: str, other: str) -> bool:
    sides = [[side.strip() for side in split_outside(answer, _EQUALS)] for answer in (one, other)]
    pairs = all(len(both) == 2 for both in sides) and is_mathematics(one) and is_mathematics(other)
    return pairs and same_equation(*sides)


def _is_equation(value: str) -> bool:
    return len(split_outside(value, _EQUALS)) > 1


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
        return len(scales) == 1 and scales <= _SCALES and _same_value(a, b)  # 20 degrees, of which scale unsaid
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
    """Values without names, units and lists."""
    if squeezed(one) == squeezed(other):
        return True
    exact = rational(one), rational(other)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
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
        return _same_words(one, other)
    return math_verify_accepts(one, other, FORMULA)


_HYPHEN = re.compile(r"(?<=[A-Za-z])-(?=[A-Za-z])")
_ARTICLE = re.compile(r"^(?:the|a|an) ")
_YES_OR_NO = frozenset(("yes", "no", "true", "false"))


def _same_words(one: str, other: str) -> bool:
    """Text answers, without case, articles, hyphens and punctuation at their ends."""
    words = []
    for text in (one, other):
        text = " ".join(_HYPHEN.sub(" ", without_text_commands(text)).casefold().split()).strip("\"'.,;:!? ")
        words.append(_ARTICLE.sub("", text))
    if words[0] == words[1]:
        return bool(words[0])
    starts = [re.split(r"[,.;:! ]", text, maxsplit=1)[0] for text in words]
    return bool(_YES_OR_NO & set(words)) and starts[0] == starts[1]
