"""math-verify, mathruler and sympy with time limits and error handling.

Answers are untrusted text: expensive expressions are not evaluated, and a failed comparison counts as unequal.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from math_verify.errors import TimeoutException
from math_verify.utils import timeout

from .notation import COMMAND

_logger = logging.getLogger(__name__)
_SECONDS = 2  # limit of one library call
_SECONDS_IN_ALL = 8  # limit of all library calls for two answers
_LOGARITHM = re.compile(r"\\(?:log|ln|lg)(?![a-z])")
# Text that is safe for mathruler, which passes it to sympy's parser, which evaluates Python.
_HARMLESS = re.compile(r"(?!.*\.(?!\d))[A-Za-z0-9\s+*/^()|<>,.%!\\{}_-]*")
_WORD = re.compile(r"[^\W\d_]{2,}")
_FORMULA_WORDS = frozenset(
    "sin cos tan cot sec csc log ln exp max min mod pi sqrt gcd lcm inf deg degree or and pmatrix bmatrix vmatrix "
    "matrix array".split()
)
_DATE = re.compile(r"[0-9]{1,4}([-/.])[0-9]{1,2}\1[0-9]{1,4}")
_TIME = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?:\s?[ap]\.?m\.?)?", re.IGNORECASE)
LONGEST_FORMULA = 200  # characters
# Too expensive for sympy: long numbers, large powers, towers, factorials.
_HEAVY = re.compile(
    r"[0-9]{40}|\^\s*\{?\s*-?[0-9]{4}"
    r"|[0-9)}]\s*\^\s*\{\s*-?\(?[0-9][^}]{0,60}\^|\^\{[^}]{0,60}(?:[0-9]\s*(?:\\cdot|\\times|\*)|!)"
    r"|\^\s*(?:\{[^}]*\}|-?[0-9]+)\s*\^|\)\s*\^\s*\{?-?(?:[2-9][0-9]|[0-9]{3})"
    r"|\*\*|[0-9]{3,}\s*!|[!)}]\s*!|\\[dt]?binom(?!\{\w{1,3}\}\{\w{1,3}\})|\\(?:sum|prod|int|lim)\b"
)
_EXPONENT = re.compile(r"\^\s*\{?\s*-?([0-9]{1,3})")
_LARGEST_POWER = 10_000
DEEPEST = 12  # nested braces and brackets


def is_mathematics(answer: str) -> bool:
    """Whether an answer is a formula without words, dates and times, and cheap enough for sympy."""
    if not answer or not is_light(answer) or _DATE.fullmatch(answer) or _TIME.fullmatch(answer):
        return False
    products = re.search(r"[0-9+*/^=\\<>-]", answer) is not None  # `xy` and `abc` may be products of variables
    words = _WORD.findall(COMMAND.sub(" ", answer))
    return all(word.lower() in _FORMULA_WORDS or (products and len(word) <= 3) for word in words)


def is_light(answer: str) -> bool:
    """Whether sympy evaluates an answer quickly."""
    if len(answer) > LONGEST_FORMULA or _HEAVY.search(answer) or depth_of(answer) > DEEPEST:
        return False
    powers = [int(power) for power in _EXPONENT.findall(answer)]  # ((9^{99})^{99})^{99} has that many factors
    return math.prod(power for power in powers if power) <= _LARGEST_POWER


def depth_of(text: str) -> int:
    """Nesting depth of braces and brackets."""
    deepest = depth = 0
    for character in text:
        depth += 1 if character in "{([" else -1 if character in "})]" else 0
        deepest = max(deepest, depth)
    return deepest


def _limit() -> int | None:
    """Time limit [seconds] of a library call; None off the main thread, where its signals cannot be set."""
    if threading.current_thread() is threading.main_thread():
        return _SECONDS
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return None


@lru_cache(maxsize=4096)
def _parse(answer: str, units: bool = False) -> tuple[Any, ...]:
    """The parsed formula and its text; empty if math-verify cannot parse it."""
    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=units), boxed_match_priority=0, try_extract_without_anchor=False
    )
    return tuple(parse(f"\\boxed{{{answer}}}", extraction_config=[config], parsing_timeout=_limit()))


def math_verify_accepts(one: str, other: str, *, units: bool = False) -> bool:
    """Whether math-verify finds two answers equal.

    Args:
        one, other: The answers.
        units: Parse as TRL's `accuracy_reward`, which removes units (also the ``t`` of ``2t``) and rounds numbers.
    """
    if any(_LOGARITHM.search(answer) for answer in (one, other)) and re.search(r"[0-9]{6}", one + other):
        return False  # sympy computes 5 ** 1000000 for \log_{10} 5 and 1000000

    def compare() -> bool:
        parsed = [list(_parse(answer, units)) for answer in (one, other)]
        if not all(parsed):
            return False
        # `verify` is not symmetric; its first argument is the gold answer.
        limit = _limit()
        same = verify(*parsed, timeout_seconds=limit) or verify(*reversed(parsed), timeout_seconds=limit)
        return bool(same) and (units or not _far_apart(parsed[0][0], parsed[1][0]))

    return _try("math-verify", compare, one, other)


def mathruler_accepts(one: str, other: str) -> bool:
    """Whether mathruler finds two answers equal; False off the main thread, where it has no time limit."""
    if not (_HARMLESS.fullmatch(one) and _HARMLESS.fullmatch(other)) or _limit() is None:
        return False
    from mathruler.grader import grade_answer

    def compare() -> bool:
        return timeout(_limit())(grade_answer)(one, other) or timeout(_limit())(grade_answer)(other, one)

    return _try("mathruler", compare, one, other)


def same_equation(one: list[str], other: list[str]) -> bool:
    """Whether two equations are multiples of each other: left side minus right side of both have a constant ratio."""

    def compare() -> bool:
        from sympy import simplify

        parsed = [[_parse(side) for side in sides] for sides in (one, other)]
        if not all(side for sides in parsed for side in sides):
            return False
        first, second = (sides[0][0] - sides[1][0] for sides in parsed)
        if not (first.free_symbols and second.free_symbols):
            return False
        ratio = timeout(_limit())(simplify)(first / second)
        return bool(ratio.is_number and ratio.is_finite and ratio != 0)

    return _try("sympy", compare, str(one), str(other))


def are_close(one: str, other: str) -> bool:
    """Whether two numbers differ by at most 1 %."""

    def compare() -> bool:
        parsed = [_parse(text) for text in (one, other)]
        if not (parsed[0] and parsed[1]) or not all(getattr(found[0], "is_number", False) for found in parsed):
            return False
        values = [float(found[0].evalf()) for found in parsed]
        return abs(values[0] - values[1]) <= 0.01 * max(map(abs, values))

    return is_light(one) and is_light(other) and _try("sympy", compare, one, other)


def _far_apart(one: Any, other: Any) -> bool:
    """Whether two expressions are different numbers; math-verify rounds to six decimal places."""
    from sympy import Float, Rational

    if not (getattr(one, "is_number", False) and getattr(other, "is_number", False)):
        return False
    # Decimals are exact: 3.14159265358979 is not pi.
    one, other = (number.xreplace({one: Rational(str(one)) for one in number.atoms(Float)}) for number in (one, other))
    difference = abs((one - other).evalf(60))
    return bool(difference > 1e-40 * max(abs(one.evalf(60)), abs(other.evalf(60))))


_started = threading.local()


@contextmanager
def limited() -> Iterator[None]:
    """Limit the library calls in this context to `_SECONDS_IN_ALL`; later calls are skipped."""
    outer = getattr(_started, "at", None)
    _started.at = outer or time.monotonic()
    try:
        yield
    finally:
        _started.at = outer


def _try(library: str, compare: Callable[[], bool], one: str, other: str) -> bool:
    """The result of a comparison; False if the library raises, since a model's answer must not end a run."""
    began = getattr(_started, "at", None)
    if began is not None and time.monotonic() - began > _SECONDS_IN_ALL:
        return False
    try:
        return compare()
    except (Exception, TimeoutException) as error:  # the latter is a BaseException
        _logger.debug("%s could not compare %r and %r: %s", library, one, other, error)
        return False
