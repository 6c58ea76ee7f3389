"""One reader of answers, for completions and solutions alike: where a text announces its answer, and what that is.

Text of a model may be anything. Every reader here takes time in proportion to its length, and raises nothing.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from .importing import imported

# text -> what it announces: "" where that is empty, None where it announces nothing.
Extractor = Callable[[str], str | None]

_BRACES = re.compile(r"\\boxed\s{0,3}\{|\\[{}\\]|[{}]")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_HASHES = re.compile(r"####([^\n]*)")
_ANNOUNCED = re.compile(r"\banswer\b\*{0,2}\s{0,4}(?:is|are|equals|=|:)\s{0,4}:?\s{0,4}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|,?\s(?:because|since)\s")
# What stands around an answer and is no part of it.
_AROUND = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|boldsymbol|mbox)\s?\{([^{}]*)\}")
# A full stop and its like, and space of any kind, after an answer.
_TRAILING = ".,;:" + "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_LONGEST_SENTENCE = 200  # characters; what is announced in more than these is no answer
_MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-")  # as people and models write it
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))


def normalised(answer: str) -> str:
    """An answer without what is around it: dollar signs, brackets of formulas, bold marks, a full stop."""
    text = answer.translate(_INVISIBLE).translate(_MINUS)
    if not text.isascii():
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    text = text.strip()
    for _ in range(8):  # layers: $\text{A}$
        before = text
        text = text.rstrip(_TRAILING) if not text.endswith(("\\.", "\\,", "\\;", "\\:", "...")) else text
        for opening, closing in _AROUND:
            inner = text[len(opening) : -len(closing)]
            around = text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening + closing)
            # `$1$ and $2$` has dollar signs at both ends, and they are no pair.
            if around and opening not in inner and closing not in inner:
                text = inner.strip()
        whole = _TEXT_COMMAND.fullmatch(text)
        text = whole[1].strip() if whole else text
        if text == before:
            break
    return text


def last_box_place(text: str) -> tuple[int, int] | None:
    """Where the content of the last complete ``\\boxed{...}`` begins and ends [characters], or None."""
    opened: list[int] = []  # where the content of a box begins; -1 for other braces
    last: tuple[int, int] | None = None
    for found in _BRACES.finditer(text):
        token = found[0]
        if token == "}":
            start = opened.pop() if opened else -1
            if start >= 0 and (last is None or start > last[0]):
                last = start, found.start()
        elif token == "{" or token.startswith("\\boxed"):
            opened.append(-1 if token == "{" else found.end())
    return last


def _last_tag_place(text: str) -> tuple[int, int] | None:
    start, last = None, None
    for found in _TAG.finditer(text):
        if not found[1]:
            start = found.end()
        elif start is not None:
            last, start = (start, found.start()), None
    return last


def _last_hashes_place(text: str) -> tuple[int, int] | None:
    last = None
    for found in _HASHES.finditer(text):
        last = found.span(1)
    return last


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` holds."""
    place = last_box_place(text)
    return None if place is None else normalised(text[slice(*place)])


def tagged(text: str) -> str | None:
    """What the last ``<answer>...</answer>`` holds, or the box in it."""
    place = _last_tag_place(text)
    if place is None:
        return None
    inside = text[slice(*place)]
    return boxed(inside) or announced(inside) or normalised(inside)


def hashed(text: str) -> str | None:
    """What stands behind the last ``####``, as in GSM8K."""
    place = _last_hashes_place(text)
    return None if place is None else normalised(text[slice(*place)])


def announced(text: str) -> str | None:
    """What follows the last "the answer is" or "Answer:", to the end of the formula or of the sentence."""
    end = None
    for found in _ANNOUNCED.finditer(text):
        end = found.end()
    if end is None:
        return None
    rest = text[end : end + 2 * _LONGEST_SENTENCE]
    for opening, closing in _AROUND:
        if rest.startswith(opening) and not rest[len(opening) : len(opening) + 1].isspace():
            close = rest.find(closing, len(opening))
            if close > 0:
                return normalised(rest[: close + len(closing)]) or None
    rest = rest.lstrip("* ")  # **Answer:** 12
    stop = _SENTENCE_END.search(rest)
    sentence = rest[: stop.start()] if stop else rest
    return None if len(sentence) > _LONGEST_SENTENCE else normalised(sentence) or None


def any_form(text: str) -> str | None:
    """The last of box, tag and hashes; where there is none of these, what a sentence announces.

    A box or a tag that was cut off announces an answer that never came.
    """
    places = {boxed: last_box_place(text), tagged: _last_tag_place(text), hashed: _last_hashes_place(text)}
    found = {reader: place for reader, place in places.items() if place is not None}
    if found:
        # The one that ends last; a tag around a box ends after it, and is read through to it.
        return max(found, key=lambda reader: found[reader][1])(text)
    cut = "\\boxed{" in text or _TAG.search(text) is not None
    return None if cut else announced(text)


EXTRACTORS: dict[str, Extractor] = {
    "auto": any_form,
    "boxed": boxed,
    "tag": tagged,
    "gsm8k": hashed,
    "sentence": announced,
}


@lru_cache(maxsize=16)
def find_extractor(name: str) -> Extractor:
    """An extractor by its name, or by an import path of your own (module.function or module:function).

    Raises:
        ValueError: If there is none.
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name]
    if "." not in name and ":" not in name:
        raise ValueError(
            f"answer_extractor: there is no {name!r}; choose of {', '.join(EXTRACTORS)}, or module.function"
        )
    return imported("answer_extractor", name)


def final_answer(completion: str, extractor: str = "auto") -> str | None:
    """The final answer of a completion (the answer only, not the reasoning), or None if it announces none.

    Args:
        completion: Its text.
        extractor: Name of the reader; see `EXTRACTORS`.

    Raises:
        ValueError: If there is no such extractor, or it is your own and returns what is no text.
    """
    return _read(completion, extractor) or None


def reference_answer(solution: str, extractor: str = "auto") -> str:
    """r+: the answer in a `solution` column, which holds either the answer alone or a worked solution.

    Read as completions are; where that finds nothing, all of the text is the answer.
    """
    found = _read(solution, extractor)
    return normalised(solution) if found is None else found


def _read(text: str, extractor: str) -> str | None:
    found = find_extractor(extractor)(text)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"answer_extractor={extractor!r} must return text or None, and returned {found!r}")
    return found
