"""Answers in words: letters of choices, yes and no, nouns."""

import re

from .notation import without_text_commands

_BEFORE_LETTER = r"(?:the )?(?:correct |right )?(?:option|choice|answer|statement|point)?(?: is)?:? ?"
# Euler's e and the imaginary unit i are no choices.
_LETTER = re.compile(
    rf"(?i:{_BEFORE_LETTER})(?:[(\[]([A-Ja-j])[)\]]|([A-Ja-dfgh])\)?)[.:]?(?: is (?:the )?correct.{{0,30}})?"
)
_NO_OPERATOR = r"(?![\^_+*/=(\[-])"
_LETTER_AND_TEXT = re.compile(
    rf"(?i:{_BEFORE_LETTER})"
    rf"(?:\(([A-J])\){_NO_OPERATOR}|\(([a-j])\)(?=[:. \d]|[A-Za-z]{{3}})|([A-J])\){_NO_OPERATOR}|"
    r"([A-J])[.:](?! ?[A-Z]\b| ?\d+:)|([A-J]),(?= [a-z])|([A-J]) ?(?=\([^,()]*\)$)|"
    r"([A-J]) [-\u2013\u2014] ?(?=[A-Za-z\d]))"
    r"[ :.,]*(\S.*)"
)
_NAMED_LETTER = re.compile(r"(?i:option|choice) ?\(?([A-J])\)?\b[ :.,)]*(\S.*)")
# After the letter of a choice: another choice, or a negation.
_ANOTHER = re.compile(
    r"\([A-Ja-j]\)|\b[B-HJ]\b(?! ?=)|\bA(?=[.):,]|$)|\b(?:and|or) A\b|\b(?:wrong|incorrect|false|not|isn't)\b"
)
_HYPHEN = re.compile(r"(?<=[A-Za-z]{2})-(?=[A-Za-z]{2})")
_ARTICLE = re.compile(r"^(?:the|a|an) ")
_PLURAL = re.compile(r"(?<=[a-z]{3})s\b")
_YES_OR_NO = re.compile(r"(yes|no|true|false)(?=[,.;:!]|$)")
_SAME = (
    ("dne", "does not exist", "undefined"),
    ("no solution", "no real solution", "empty set", r"\emptyset", "none", r"\{\}"),
)


def letter_of(answer: str) -> str | None:
    """The letter of an answer that is only a letter: ``C``, ``(c)``, ``option C``; None for other answers."""
    found = _LETTER.fullmatch(without_text_commands(answer))
    return (found[1] or found[2]).upper() if found else None


def letter_and_text(answer: str) -> tuple[str, str] | None:
    """The letter and the text of a choice: ``(E) 12``, ``E: the longer side``; None for other answers."""
    text = without_text_commands(answer)
    found = _LETTER_AND_TEXT.fullmatch(text) or _NAMED_LETTER.fullmatch(text)
    if found is None:
        return None
    letter, rest = next(group for group in found.groups()[:-1] if group).upper(), found.groups()[-1]
    if any(other[0].strip("()").upper() != letter for other in _ANOTHER.finditer(rest)):
        return None
    return letter, rest.strip("() ")


def same_words(one: str, other: str) -> bool:
    """Whether two texts are equal up to case, articles, plurals, hyphens and final punctuation."""
    words = [_words(text) for text in (one, other)]
    if words[0] == words[1]:
        return bool(words[0])
    starts = [_YES_OR_NO.match(text) for text in words]
    if starts[0] and starts[1] and any(start[0] == text for start, text in zip(starts, words, strict=True) if start):
        return starts[0][1] == starts[1][1]
    return any({*words} <= {_words(text) for text in group} for group in _SAME)


def _words(text: str) -> str:
    text = without_text_commands(text)
    if len(text) > 2 or text.casefold() == "no":  # CO differs from Co
        text = text.casefold()
    text = " ".join(_HYPHEN.sub(" ", text).split()).strip("\"' ").rstrip(".,;:?")
    text = text.rstrip("!") if re.search(r"[a-z]{3}", text) else text  # 5! differs from 5
    return _PLURAL.sub("", _ARTICLE.sub("", text))
