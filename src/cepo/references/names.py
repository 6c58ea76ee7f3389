r"""Names before a value: ``AB = 45``, ``m\angle 1 = 45``, ``\text{Area} = 45``, ``the area is 45``."""

import re

from .exact import rational
from .notation import COMMAND, split_outside, without_text_commands
from .units import split_unit

EQUALS = re.compile(r"(?<![<>:=])=+|\\approx ?|\\equiv ?(?!.*mod)|\\in ?(?=[(\[]|\\\{)|:=")
# A limit, integral or derivative before `=` is the name of the value.
_OPERATION = re.compile(r"\\(?:lim|int|sum|prod)(?![a-z])|\\frac\{d|\([A-Za-z](?:, ?[A-Za-z])+\)$")
# `\text{The area is } 12`, `Area: 12`
_IS = re.compile(
    r"(?:\\text\{([^{}]*?)(?:\b(?:is|are|equals)|:|=)\s*\} ?|(.{1,40}?) (?:is|are|equals) |"
    r"([A-Za-z][A-Za-z' ]{2,}): ?)(\S.*)"
)
_ANGLE = r"\\(?:angle|widehat|overset|overarc)"
_DECORATIONS = re.compile(
    rf"m(?={_ANGLE})|\\(?:overline|overrightarrow|overleftrightarrow|widehat|hat|vec|bar|overarc|angle|triangle|text|odot|"
    r"mathbb|mathcal)(?![A-Za-z])|\\overset\{\\frown\}|\\frown|[\s{}]|\|(?=[A-Z]{2}\|)|(?<=\|[A-Z]{2})\||(?<=[A-Z]{2})\|"
)
_CONSTANTS = ("e", "i", r"\pi", r"\infty")
_DIRECTED = re.compile(r"\\(?:vec|overrightarrow)")
_GREEK = r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|varphi|omega|Delta|Omega)"
_SYMBOL = re.compile(
    r"(?:\\(?:sin|cos|tan|cot|sec|csc|log|ln|det|max|min) ?)?"
    rf"(?:[A-Za-z]{{1,7}}|{_GREEK})?'{{0,3}}(?:_?[A-Za-z0-9]{{1,6}})?(?:\([\w,\\+-]{{1,12}}\))?"
)
GEOMETRY = re.compile(r"\\(?:angle|triangle|overline|overrightarrow|vec|overarc|widehat)")


def name_of(text: str) -> str | None:
    """The canonical name if a text is a name: a symbol, or ``~`` and words such as `Area`; None for a formula."""
    words = without_text_commands(text)
    if re.fullmatch(r"[A-Za-z\\][A-Za-z' \\]*", words) and re.search(r"[a-z]{3}", COMMAND.sub("", words)):
        return f"~{' '.join(words.casefold().split())}"
    symbol = _DECORATIONS.sub("", text)
    if re.fullmatch(r"(?:[A-Za-z]{1,3}|\\[a-z]{2,7})(?:\^-1)?[(\[].{1,30}[)\]]", symbol):  # P(sum = 8), E[X]
        return "y" if re.fullmatch(r"[fgh]\([a-z]\)", symbol) else symbol
    if _OPERATION.match(text):
        return symbol if text.startswith("(") else "~"
    starts = symbol[:1].isalpha() or symbol[:1] == "\\" or (symbol[:1].isdigit() and "angle" in text)
    if not starts or not _SYMBOL.fullmatch(symbol):
        return None
    letters = re.sub(r"[_\\]", "", symbol)
    if re.fullmatch(r"[A-Z]{2,3}", letters) and not _DIRECTED.search(text):  # segment AB is BA, angle ABC is CBA
        return min(letters, letters[::-1])
    return letters


def differ(one: str | None, other: str | None) -> bool:
    """Whether two names contradict each other; words and a symbol do not."""
    return bool(one and other and one != other and one.startswith("~") == other.startswith("~"))


def named(answer: str) -> tuple[str | None, str]:
    """The name and the value of an answer in `plain` spelling; None without a name."""
    sides = [side.strip() for side in split_outside(answer, EQUALS)]
    if len(sides) == 1:
        found = _IS.fullmatch(answer)
        if found is None:
            return None, answer
        subject = next((group for group in found.groups()[:3] if group), "")
        return f"~{' '.join(subject.casefold().split())}", found[4].strip()
    if not all(sides):
        return None, answer
    names = [None if side in _CONSTANTS else name_of(side) for side in sides]
    if None not in names:  # AB = CD is a relation
        return None, answer
    if names[0] is not None and names[-1] is None:
        return names[0], sides[-1]
    if len(sides) == 2 and names[1] is not None:
        return names[1], sides[0]
    # A chain of numbers, or a formula of names such as `AB + BC`, ends in its value.
    is_number = rational(sides[-1]) is not None or not re.search(r"[A-Za-z]", COMMAND.sub("", split_unit(sides[-1])[0]))
    symbols = re.fullmatch(r"[A-Za-z+*/\s{}()_'\\-]+", _DECORATIONS.sub("", sides[0])) and r"\text" not in sides[0]
    if is_number and symbols and "^" not in sides[0]:
        return "~", sides[-1]
    if not any(re.search(r"[A-Za-z]", COMMAND.sub("", side)) for side in sides):
        return "~", sides[-1]
    return None, answer


def is_equation(value: str) -> bool:
    return len(split_outside(value, EQUALS)) > 1
