"""Whether two answers are the same: by their text, and by math-verify where both are mathematics.

An answer is a model's text. What would take long, or is none of mathematics, is compared as text alone.
"""

import logging
import re
import threading
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from .reading import final_answer, last_box_place, normalised, reference_answer

__all__ = [
    "final_answer",
    "is_mathematics",
    "last_box_place",
    "normalised",
    "reference_answer",
    "same_answer",
    "text_of_completion",
]

# The extraction of TRL's `accuracy_reward`.
_BOXED = [
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
]
# Whole numbers, and lists of them in parentheses: what they say is plain, and math-verify takes tens of milliseconds.
_INTEGER = re.compile(r"-?[0-9]+")
_INTEGERS = re.compile(r"\(-?[0-9]+(?:,\s*-?[0-9]+)+\)")
_WORD = re.compile(r"[^\W\d_]{2,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
# Words within mathematics, and units that math-verify leaves out.
_FORMULA_WORDS = frozenset(
    (
        *("sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "max", "min", "mod", "pi", "sqrt", "gcd"),
        *("lcm", "inf", "deg", "degree", "degrees", "mm", "cm", "dm", "km", "mi", "ft", "in", "kg", "mg", "lb", "oz"),
        *("ml", "hr", "hrs", "unit", "units", "or", "and"),
    )
)
_DATE = re.compile(r"[0-9]{1,4}([-/.])[0-9]{1,2}\1[0-9]{1,4}")
_TIME = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?:\s?[ap]\.?m\.?)?", re.IGNORECASE)
_LONGEST_FORMULA = 200  # characters
# What sympy would work out for longer than anyone waits: long numbers, large powers, towers, factorials.
_HEAVY = re.compile(
    r"[0-9]{40}|\^\s*\{?\s*-?[0-9]{4}|\^[^^]{0,40}\^|[0-9]{3,}\s*!|!\s*!|\\binom|\\(?:sum|prod|int|lim)\b|\\begin"
)
_LONGEST_REMEMBERED = 2_000  # characters
_DEEPEST = 12  # braces and brackets within each other


def is_mathematics(answer: str) -> bool:
    """Whether an answer is a formula that math-verify may be asked about: no word, date or time, and not too much."""
    if not answer or len(answer) > _LONGEST_FORMULA or _HEAVY.search(answer):
        return False
    if _DATE.fullmatch(answer) or _TIME.fullmatch(answer) or _depth(answer) > _DEEPEST:
        return False
    words = _WORD.findall(_COMMAND.sub(" ", answer))
    return all(word.lower() in _FORMULA_WORDS for word in words)


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += 1 if character in "{([" else -1 if character in "})]" else 0
        deepest = max(deepest, depth)
    return deepest


def _timeout(seconds: int) -> int | None:
    """math-verify's time limits use signals, which only the main thread may set."""
    if threading.current_thread() is threading.main_thread():
        return seconds
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return None


@lru_cache(maxsize=4096)
def _parse_answer(answer: str) -> tuple:
    return tuple(parse(f"\\boxed{{{answer}}}", extraction_config=_BOXED, parsing_timeout=_timeout(3)))


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are spellings of the same one."""
    # What is remembered is held in memory: answers may be, texts of a megabyte may not.
    return (_compared if len(one) + len(other) < _LONGEST_REMEMBERED else _compared.__wrapped__)(one, other)


@lru_cache(maxsize=16384)
def _compared(one: str, other: str) -> bool:
    one, other = normalised(one), normalised(other)
    if one == other:
        return True
    for form in (_INTEGER, _INTEGERS):
        if form.fullmatch(one) and form.fullmatch(other):
            return [*map(_digits, _INTEGER.findall(one))] == [*map(_digits, _INTEGER.findall(other))]
    if not (is_mathematics(one) and is_mathematics(other)):
        return " ".join(one.casefold().split()) == " ".join(other.casefold().split())
    try:
        parsed = list(_parse_answer(one)), list(_parse_answer(other))
        if not all(parsed):
            return False
        # `verify` treats its first argument as the gold answer and is not symmetric; either direction will do.
        limit = _timeout(3)
        return bool(
            verify(parsed[0], parsed[1], timeout_seconds=limit) or verify(parsed[1], parsed[0], timeout_seconds=limit)
        )
    except Exception as error:  # what a model writes must not end a run
        logging.getLogger(__name__).debug("math-verify could not compare %r and %r: %s", one, other, error)
        return False


def _digits(number: str) -> str:
    """A whole number as text in one way; int() refuses more than 4,300 digits."""
    digits = number.lstrip("-").lstrip("0") or "0"
    return f"-{digits}" if number.startswith("-") and digits != "0" else digits


def text_of_completion(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion: of its last assistant message, where it is a conversation."""
    if isinstance(completion, str):
        return completion
    message = next((m for m in reversed(completion) if m["role"] == "assistant"), {"content": ""})
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)  # a column of parts holds None for an image's
