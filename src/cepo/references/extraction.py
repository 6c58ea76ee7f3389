"""Answer extraction: where a completion or a solution announces its answer, and what that answer is.

Completions are untrusted text. Every function here takes time in proportion to its length and raises nothing.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .importing import imported

# text -> the answer that it announces: "" where the announced place is empty, None where the text announces nothing.
Extractor = Callable[[str], str | None]

# `\\boxed` with two backslashes is a data set's escaping, and `\fbox` what some models write.
_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,3}\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s{0,3}(-?[A-Za-z0-9.]+)")
# Text between two boxes of one answer: `$x=\boxed{3}$ or $x=\boxed{5}$`.
_NAME_BEFORE = re.compile(r"([A-Za-z]\w{0,3}|\\[a-z]{2,7})\s{0,3}=\s{0,3}\$?$")
_JOINT = re.compile(r"(?:[\s$,;&]|\\text\s?\{\s?(?:or|and)\s?\}|\\q?quad|\\[()\[\],;]|\b(?:or|and)\b){0,24}")
_OPEN_TAG = re.compile(r"<answer>(?!\s?:)", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_NO_VALUE = (  # what follows "the answer is" without being an answer
    r"(?!\s)(?!(?:not|in|correct|incorrect|wrong|right|consistent|verified|confirmed|reasonable|valid|plausible|clear|obtained|"
    r"unique|the same|also|as follows|an? (?:number|integer|fraction|angle|length))\b)"
)
_ADVERBS = (
    r"(?:(?:therefore|thus|hence|simply|just|clearly|indeed|exactly|approximately|about|likely|probably)\b,?\s{0,4})?"
)
_ANSWER = r"\bans(?:wer)?\b(?: (?:to|of|for) [^.\n]{1,40}?)?|\bcorrect (?:choice|option)\b|答案"
_IS = rf"(?:is|are|equals|must be|should be)\s{{0,4}}:?\s{{0,4}}(?:the (?:number|value) )?{_NO_VALUE}"
_ANNOUNCED = re.compile(
    rf"(?<!if )(?<!if the )(?<!whether the )(?:{_ANSWER})[*_>\"'}}]{{0,3}}(?:</\w+>)?\s{{0,4}}"
    rf"(?:{_IS}|(?:=|:|：|是|为| [-–—] )\s{{0,4}})[*_}}]{{0,3}}(?:</\w+>)?\s{{0,4}}{_ADVERBS}",
    re.IGNORECASE,
)
# A choice that is announced in no other way.
_CHOSEN = re.compile(
    r"\b(?:choose|select|pick)\s{1,4}(?:option |choice |answer )?[*(]{0,3}([A-J])[*)]{0,3}\s{0,2}(?:[.,\n]|$)"
    r"|\boption [*(]{0,3}([A-J])[*)]{0,3} is (?:the )?correct\b"
)
# A heading alone on its line; the answer is the next line that says something.
_HEADING = re.compile(
    r"^[ \t#>*_]{0,8}(?:the )?(?:final |correct )?answer[ \t*_:：]{0,6}$\s{0,8}(?:```\w{0,8}\n)?",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(
    r"[.!?](?=\s|\*|$)|[。！？]|\n|,?\s(?:because|since|so that)\s|,\s(?:which|as|and this|where)\s"
    r"|\sas (?:required|expected)|\s\((?=[a-z]{3,}\b|option\b)"
)
_IN_WORDS = re.compile(
    r"\s*[*_]{0,3}(?:(?:the )?(?:final )?answer|\w+[.):] [A-Za-z]|[A-Za-z]{3,} [A-Za-z]{3,})", re.IGNORECASE
)
_END_TOKEN = re.compile(r"(?:<\|[a-z_]{2,20}\|>|</s>|<eos>|<end_of_turn>)$")
# Markup around an answer that is no part of it.
_AROUND = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("***", "***"), ("**", "**"), ("__", "__")),
    *(("`", "`"), ('"', '"'), ("\u201c", "\u201d")),
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|boldsymbol|mbox|boxed|fbox)\s?\{([^{}]*)\}")
_TRAILING = ".,;:。，；：" + "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_LONGEST_SENTENCE = 200  # characters; a longer announcement is no answer
_MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
# Delimiters of thinking in current chat templates.
_THINKING = re.compile(
    r"(?P<close></(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>)|"
    r"(?:<(?:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷|<\|begin_of_thought\|>)",
    re.IGNORECASE,
)


def text_of_completion(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion; of a conversation, its last assistant message.

    With tools a completion has several assistant turns. The verdict and r- both come from the last one.
    """
    if isinstance(completion, str):
        return completion
    message = next((m for m in reversed(completion) if m["role"] == "assistant"), {"content": ""})
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)  # a column of parts holds None for an image's


def after_thinking(text: str) -> str | None:
    """The part of a completion behind its thinking; None if the text ends while it thinks.

    The thinking ends at the last closing delimiter; its opening one may stand in the prompt.
    """
    end = 0
    opened = False
    for found in _THINKING.finditer(text):
        opened = found["close"] is None
        end = end if opened else found.end()
    return None if opened else text[end:]


def opens_thinking(generation_prompt: str) -> str:
    """The delimiter with which a generation prompt opens the thinking of every completion; "" if it does not."""
    delimiters = list(_THINKING.finditer(generation_prompt))
    return delimiters[-1][0] if delimiters and not delimiters[-1]["close"] else ""


def normalised(answer: str) -> str:
    """An answer without the markup around it: dollar signs, brackets of formulas, bold marks, a full stop."""
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


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """(start of the command, start and end of the content) of each complete, outermost box, in order [characters]."""
    opened: list[tuple[int, int] | None] = []  # boxes, and None for other braces
    found: list[tuple[int, int, int]] = []
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            begun = opened.pop() if opened else None
            if begun is not None:
                while found and found[-1][0] > begun[0]:  # a box in this one
                    found.pop()
                found.append((*begun, match.start()))
        elif token == "{" or "box" in token:
            opened.append(None if token == "{" else (match.start(), match.end()))
    return found


def last_box_place(text: str) -> tuple[int, int] | None:
    """Where the content of the last complete ``\\boxed{...}`` begins and ends [characters], or None."""
    boxes = _boxes(text)
    return boxes[-1][1:] if boxes else None


def boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}``, or of several boxes that together are one answer.

    Boxes are one answer where only ``or``, ``and``, a comma or a name such as ``x =`` stands between them.
    """
    boxes = _boxes(text)
    if not boxes:
        bare = _BARE_BOX.findall(text)
        return normalised(bare[-1]) if bare else None
    first = len(boxes) - 1
    while first > 0 and _joined(text[boxes[first - 1][2] + 1 : boxes[first][0]]):
        first -= 1
    parts: dict[str, None] = {}  # a set that keeps its order: an answer boxed twice is one answer
    for start, begin, end in boxes[first:]:
        name = _NAME_BEFORE.search(text[max(0, start - 16) : start]) if first < len(boxes) - 1 else None
        content = normalised(text[begin:end])
        parts[f"{name[1]} = {content}" if name and content else content] = None
    return next(iter(parts)) if len(parts) == 1 else ", ".join(parts)


def _joined(between: str) -> bool:
    if len(between) > 60:
        return False
    name = _NAME_BEFORE.search(between)
    return _JOINT.fullmatch(between[: name.start()] if name else between) is not None


def _last_tag_place(text: str) -> tuple[int, int] | None:
    start, last = None, None
    for found in _TAG.finditer(text):
        if not found[1]:
            start = found.end()
        elif start is not None:
            last, start = (start, found.start()), None
    return last


def _last_hashes_place(text: str) -> tuple[int, int] | None:
    """GSM8K's last line; a heading of Markdown has text behind it, or is one in words."""
    start = text.rfind("####")
    if start < 0 or text[start - 1 : start] == "#":
        return None
    start += 4
    rest = text[start:]
    if "\n" in rest.strip() or len(rest.strip()) > _LONGEST_SENTENCE:
        return None
    heading = re.match(
        r"\s*[*_]{0,3}(?:(?:the )?(?:final )?answer|\w+[.):] [A-Za-z]|[A-Za-z]{3,} [A-Za-z]{3,})", rest, re.IGNORECASE
    )
    return None if heading else (start, len(text))


def tagged(text: str) -> str | None:
    """The content of the last ``<answer>...</answer>``, or of the box in it."""
    place = _last_tag_place(text)
    if place is None:
        return None
    inside = text[slice(*place)]
    return boxed(inside) or announced(inside) or normalised(inside)


def hashed(text: str) -> str | None:
    """The rest of the line behind the last ``####``, as in GSM8K."""
    place = _last_hashes_place(text)
    return None if place is None else normalised(text[slice(*place)])


def announced(text: str) -> str | None:
    """The text behind the last "the answer is", "Answer:" or heading "Final Answer", to the end of its sentence."""
    found = [match for pattern in (_ANNOUNCED, _HEADING) for match in pattern.finditer(text)]
    if not found:
        letters = [match[1] or match[2] for match in _CHOSEN.finditer(text)]
        return letters[-1] if letters else None
    end = max(match.end() for match in found)
    rest = re.sub(r"\*{2,3}|__", "", text[end : end + 2 * _LONGEST_SENTENCE])  # `**Answer:** 12`, `**Answer: 12**`
    if "\n" in text[max(0, end - 3) : end]:
        rest = re.sub(r"^[-•>*]\s{1,3}(?=\S)", "", rest)
    rest = rest.lstrip()
    for opening, closing in _AROUND:
        if rest.startswith(opening) and (len(opening) == 2 or not rest[1:2].isspace()):
            close = rest.find(closing, len(opening))
            if opening == "$" and re.match(r"\$\d", rest) and (close < 0 or re.match(r"\$\s?\d", rest[close:])):
                break  # an amount of money: $5 and $3
            after = rest[close + len(closing) :].split("\n")[0]
            # `$x$ and $y$`, `$12$ cm`: what follows on the line belongs to the answer unless a sentence begins there.
            if close > 0 and not re.match(r"\s{0,3}(?:[A-Za-z]{1,6}\s?[$.\n]|(?:and|or)\b|,\s?\$|\\text)", after):
                return normalised(rest[: close + len(closing)]) or None
    stop = _SENTENCE_END.search(rest)
    sentence = rest[: stop.start()] if stop else rest
    return None if len(sentence) > _LONGEST_SENTENCE else normalised(sentence) or None


def any_form(text: str) -> str | None:
    """The last of box, tag and hashes; where there is none of these, the announcement in a sentence.

    A box or a tag that was cut off announces an answer that never came.
    """
    places = {boxed: last_box_place(text), tagged: _last_tag_place(text), hashed: _last_hashes_place(text)}
    found = {extract: place for extract, place in places.items() if place is not None}
    if found:
        # The one that ends last; a tag around a box ends after it, and is read through to it.
        return max(found, key=lambda extract: found[extract][1])(text)
    if "\\boxed{" in text or "\\fbox{" in text or _OPEN_TAG.search(text) is not None:
        return None
    return boxed(text) or announced(text)


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

    Thinking between ``<think>`` and ``</think>`` is left out; a completion that ends within it has no answer.

    Args:
        completion: Its text.
        extractor: Name of the extractor; see `EXTRACTORS`.

    Raises:
        ValueError: If there is no such extractor, or an extractor of your own returns something that is not text.
    """
    answered = after_thinking(completion)
    if answered is None:
        return None
    answered = answered.rstrip()
    if end := _END_TOKEN.search(answered[-30:]):
        answered = answered[: end.start() - end.end()]
    return _extract(answered, extractor) or None


def reference_answer(solution: str, extractor: str = "auto") -> str:
    """r+: the answer in a `solution` column, which holds either the answer alone or a worked solution.

    The same extractor reads it as reads completions; where that finds nothing, the whole text is the answer.
    """
    solution = after_thinking(solution) or solution
    found = _extract(solution, extractor)
    return normalised(solution) if found is None else found


def _extract(text: str, extractor: str) -> str | None:
    found = find_extractor(extractor)(text)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"answer_extractor={extractor!r} must return text or None, and returned {found!r}")
    return found
