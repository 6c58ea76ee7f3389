"""Final answers: finding them in completions and telling whether two of them are the same.

math-verify decides what is an answer and which spellings are equal, as in TRL's `accuracy_reward`.
"""

import logging
import re
import threading
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

# The extraction of TRL's `accuracy_reward`: only an answer that is announced as one counts, not any number in the text.
_ANNOUNCED = [
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
]
_BOX = "\\boxed{"
# Whole numbers, and lists of them in parentheses: what they say is plain, and math-verify takes tens of milliseconds.
_INTEGER = re.compile(r"-?\d+")
_INTEGERS = re.compile(r"\(-?\d+(?:,\s*-?\d+)+\)")


def _timeout(seconds: int) -> int | None:
    """math-verify's time limits use signals, which only the main thread may set."""
    if threading.current_thread() is threading.main_thread():
        return seconds
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return None


def last_box(text: str) -> str | None:
    """The content of the last complete ``\\boxed{...}`` of a text, or None."""
    place = last_box_place(text)
    return None if place is None else text[slice(*place)].strip() or None


def last_box_place(text: str) -> tuple[int, int] | None:
    """Where the content of the last complete ``\\boxed{...}`` begins and ends [characters], or None."""
    start = text.rfind(_BOX)
    while start != -1:
        depth = 1
        for position in range(start + len(_BOX), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return start + len(_BOX), position
        start = text.rfind(_BOX, 0, start)
    return None


def final_answer(completion: str) -> str | None:
    """The final answer of a completion (the answer only, not the reasoning), or None if it announces none."""
    boxed = last_box(completion)
    if boxed is not None:
        return boxed
    if _BOX in completion:  # a box that was cut off announces an answer that never came
        return None
    parsed = parse(completion, extraction_config=_ANNOUNCED, parsing_timeout=_timeout(10))
    return str(parsed[-1]).strip() or None if parsed else None


def reference_answer(solution: str) -> str:
    """r+: the answer in a `solution` column, which holds either the answer alone or a worked solution.

    The last box counts; else what stands behind GSM8K's ``####``; else the whole text without its dollar signs.
    """
    boxed = last_box(solution)
    if boxed is not None:
        return boxed
    return solution.rpartition("####")[2].strip().strip("$").strip()


@lru_cache(maxsize=4096)
def _parse_answer(answer: str) -> tuple:
    return tuple(parse(f"{_BOX}{answer}}}", extraction_config=_ANNOUNCED, parsing_timeout=_timeout(10)))


@lru_cache(maxsize=16384)
def same_answer(one: str, other: str) -> bool:
    """Whether two answers are spellings of the same one."""
    if one == other:
        return True
    for form in (_INTEGER, _INTEGERS):
        if form.fullmatch(one) and form.fullmatch(other):
            return [*map(int, _INTEGER.findall(one))] == [*map(int, _INTEGER.findall(other))]
    parsed = list(_parse_answer(one)), list(_parse_answer(other))
    if not all(parsed):
        return False
    # `verify` treats its first argument as the gold answer and is not symmetric; either direction will do.
    limit = _timeout(5)
    return bool(
        verify(parsed[0], parsed[1], timeout_seconds=limit) or verify(parsed[1], parsed[0], timeout_seconds=limit)
    )


def text_of_completion(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion: of its last assistant message, where it is a conversation."""
    if isinstance(completion, str):
        return completion
    message = next((m for m in reversed(completion) if m["role"] == "assistant"), {"content": ""})
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
