"""Lists, sets, tuples, unions, intervals and inequalities: the parts of an answer in `plain` spelling."""

import re
from collections.abc import Callable, Sequence

from .names import differ, name_of, named
from .notation import split_outside
from .units import split_unit, sum_of_units

_MOST_PARTS = 12  # parts of a list; comparing sets is quadratic
# Whether two answers are equal; `choices`: whether a single letter may be a choice.
Same = Callable[..., bool]

_SEPARATORS = re.compile(r"[,;]|\\text\{,?\s*(?:and|or)\s*\}| ?\b(?:and|or)\b ?")
_SUCH_THAT = re.compile(r"\\\{ ?[a-z](?: ?\\in ?\\mathbb\{?R\}?)? ?(?:\||:|\\mid) ?(.*)\\\}$")
_UNION = re.compile(r"\\cup ?")
_RELATION = re.compile(r"\\le ?(?![a-z])|\\ge ?(?![a-z])|<=|>=|<|>")
_OPEN = {"(": "(", "[": "[", r"\{": "{", "]": "("}
_CLOSED = {")": ")", "]": "]", r"\}": "}", "[": ")"}
_ALL_REALS = re.compile(r"(?:[a-z] ?\\in ?)?\\mathbb\{?\s?R\}?|\\mathbb ?R|(?i:all real numbers|all reals)")
_ALL_BUT = re.compile(r"(?:[a-z] ?\\ne ?|\\mathbb\{?\s?R\}? ?(?:\\setminus|\\backslash|-) ?\\\{)([^,{}]+)(?:\\\})?")


class Items:
    """The parts of an answer.

    Attributes:
        kind: Their brackets, "" for a bare list, ``cup`` for a union, None for a single value.
        parts: The parts in `plain` spelling.
        name: The name of the answer, None without a name.
    """

    def __init__(self, kind: str | None, parts: Sequence[str], name: str | None = None):
        self.kind, self.parts, self.name = kind, list(parts), name

    @classmethod
    def of(cls, answer: str, same: Same) -> "Items":
        """The parts of an answer; `same` compares two answers."""
        if sum_of_units(answer):  # 1 hour and 30 minutes
            return cls(None, [answer])
        answer = _SUCH_THAT.sub(r"\1", answer)
        parts = _parts(answer)
        if 1 < len(parts) <= _MOST_PARTS:
            if (ranges := _ranges(parts, answer)) is not None:
                return cls("cup", ranges) if len(ranges) > 1 else cls.of(ranges[0], same)
            if all(same(parts[0], part) for part in parts[1:]):  # 13/2 or 6.5
                return cls(None, [parts[0]])
            names = [named(part)[0] for part in parts]
            if names[0] and not any(names[1:]):  # x = 1, 2
                parts = [parts[0], *(f"{parts[0].split('=')[0]}={part}" for part in parts[1:])]
            return cls("", [value for part in parts for value in _plus_minus(part)])
        name, value = named(answer)
        if found := _interval(value):
            name, value = found
        if point := re.match(r"[A-Z]'{0,2}(?=\(.*,.*\)$)", value):  # A(3, 4)
            name, value = point[0], value[point.end() :]
        value = (value if _bracketed(value) else split_unit(value)[0]).strip()
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

    def equal(self, other: "Items", same: Same) -> bool:
        """Whether the parts are equal, in order where order matters."""
        for a, b in ((self, other), (other, self)):  # AC for A, C
            if a.kind == "" and b.kind is None and re.fullmatch(r"[A-J]{2,5}", b.parts[0]):
                return sorted(a.parts) == sorted(b.parts[0])
        if self.kind is None or other.kind is None:
            # A set of one value equals the value.
            single = all(len(one.parts) == 1 for one in (self, other)) and "{}" in (self.kind, other.kind)
            return single and same(self.parts[0], other.parts[0])
        if len(self.parts) != len(other.parts) or len(self.parts) > _MOST_PARTS:
            return False
        if differ(self.name, other.name):
            return False
        kinds = {self.kind, other.kind}
        ones, others = self._in_order(), other._in_order()
        by_name = (ones is None and not self._has_names()) != (others is None and not other._has_names())
        if kinds == {"cup"} or (kinds <= {"", "{}"} and not (kinds == {""} and by_name and (ones or others))):
            return _same_in_any_order(self.parts, other.parts, same)
        # Open and closed intervals differ, as do sets and points; [1, 2] is an interval, 1, 2 is not.
        if len(kinds) == 2 and (kinds & {"{}", "cup"} or (len(self.parts) == 2 and kinds != {"", "()"})):
            return False
        pairs = zip(ones or self.parts, others or other.parts, strict=True)
        return all(same(one, another, choices=kinds == {""}) for one, another in pairs)

    def _has_names(self) -> bool:
        return any(named(part)[0] for part in self.parts)

    def _in_order(self) -> list[str] | None:
        """The values of ``y = 5, x = 3`` in the order of their names; None without distinct names."""
        pairs = [named(part) for part in self.parts]
        names = {name for name, _ in pairs if name}
        if len({re.sub(r"\d", "", name) for name in names}) == 1:  # roots x_1, x_2
            return None
        if self.kind != "" or len(names) < len(pairs):
            return None
        return [value for _, value in sorted(pairs, key=lambda pair: pair[0] or "")]


def _ranges(parts: Sequence[str], answer: str) -> list[str] | None:
    """The ranges of ``x < 1 or x > 3``, or the one range of ``x > 1 and x < 3``; None if a part is no range."""
    found = [_interval(part) for part in parts]
    if None in found or len({pair[0] for pair in found if pair}) > 1:
        return None
    ranges = [pair[1] for pair in found if pair]
    if len(ranges) == 2 and re.search(r"\band\b|\\text\{\s*and\s*\}", answer):
        low = next((one for one in ranges if one.endswith(r"\infty)")), None)
        high = next((one for one in ranges if one.startswith(r"(-\infty")), None)
        if low and high and low != high:
            return [low.removesuffix(r"\infty)") + high.removeprefix(r"(-\infty,")]
    return ranges


def _same_in_any_order(ones: Sequence[str], others: Sequence[str], same: Same) -> bool:
    left = list(others)
    for one in ones:
        found = next((place for place, other in enumerate(left) if same(one, other)), None)
        if found is None:
            return False
        del left[found]
    return True


_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,)\d{3})+(?![\d,])")


def _parts(answer: str, *, thousands: bool = True) -> list[str]:
    """The parts of a list. Outside of brackets, a comma between groups of three digits does not separate parts."""
    if thousands or (re.search(r",0\d\d\b", answer) and " " not in answer):
        answer = _THOUSANDS.sub(lambda found: re.sub(r"[{},]", "", found[0]), answer)
    parts = [part.strip() for part in split_outside(answer.replace("{,}", ""), _SEPARATORS)]
    return [part for part in parts if part] or [answer]


def _bracketed(value: str) -> tuple[str, str] | None:
    """The brackets around a value and the text in them; None if they do not enclose the whole value."""
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
    """The name and the interval of an inequality in one name; None for other answers."""
    sides = [side.strip() for side in split_outside(answer, _RELATION)]
    signs = [sign.strip() for sign in _RELATION.findall(answer)]
    if len(sides) != len(signs) + 1 or len(sides) not in (2, 3) or not all(sides):
        return None
    names = [name_of(side) for side in sides]
    if sum(name is not None for name in names) != 1:  # x > y
        return None
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
