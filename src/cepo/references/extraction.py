"""Answer extraction: the final answer of a completion or a solution.

Completions are untrusted text. The functions run in linear time and raise no errors.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .importing import imported

# text -> its final answer: "" for an empty box or tag, None without an answer.
Extractor = Callable[[str], str | None]

# Some datasets escape `\boxed` as `\\boxed`; some models write `\fbox`.
_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,3}\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s{0,3}(-?[A-Za-z0-9.]+)")
# Between two boxes of one answer: `$x=\boxed{3}$ or $x=\boxed{5}$`.
_NAME_BEFORE = re.compile(r"([A-Za-z]\w{0,3}|\\[a-z]{2,7})\s{0,3}=\s{0,3}\$?$")
_JOINT = re.compile(r"(?:[\s$,;&]|\\text\s?\{\s?(?:or|and)\s?\}|\\q?quad|\\[()\[\],;]|\b(?:or|and)\b){0,24}")
_OPEN_TAG = re.compile(r"<answer>(?!\s?:)", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_NO_VALUE = (  # continuations of "the answer is" that are no answer
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
# A choice without another announcement.
_CHOSEN = re.compile(
    r"\b(?:choose|select|pick)\s{1,4}(?:option |choice |answer )?[*(]{0,3}([A-J])[*)]{0,3}\s{0,2}(?:[.,\n]|$)"
    r"|\boption [*(]{0,3}([A-J])[*)]{0,3} is (?:the )?correct\b"
)
# A heading on a line of its own; the answer is the next line with text.
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
# Markup around an answer.
_AROUND = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("***", "***"), ("**", "**"), ("__", "__")),
    *(("`", "`"), ('"', '"'), ("\u201c", "\u201d")),
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|boldsymbol|mbox|boxed|fbox)\s?\{([^{}]*)\}")
_TRAILING = ".,;:。，；：" + "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_LONGEST_SENTENCE = 200  # characters; a longer sentence is no answer
_MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
# Thinking delimiters of current chat templates.
_THINKING = re.compile(
    r"(?P<close></(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>)|"
    r"(?:<(?:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷|<\|begin_of_thought\|>)",
    re.IGNORECASE,
)


def text_of_completion(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion. With tools a completion is a conversation; its text is the last assistant message."""
    if isinstance(completion, str):
        return completion
    message = next((m for m in reversed(completion) if m["role"] == "assistant"), {"content": ""})
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)  # image parts may have text None


def after_thinking(text: str) -> str | None:
    """The completion after its thinking; None if it ends within its thinking.

    Thinking ends at the last closing delimiter. The opening delimiter may be in the prompt.
    """
    end = 0
    opened = False
    for found in _THINKING.finditer(text):
        opened = found["close"] is None
        end = end if opened else found.end()
    return None if opened else text[end:]


def opens_thinking(generation_prompt: str) -> str:
    """The thinking delimiter at the end of a generation prompt, or ""."""
    delimiters = list(_THINKING.finditer(generation_prompt))
    return delimiters[-1][0] if delimiters and not delimiters[-1]["close"] else ""


def normalized(answer: str) -> str:
    """An answer without surrounding markup: dollar signs, formula brackets, bold marks, a final period."""
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
            # The outer dollar signs of `$1$ and $2$` are no pair.
            if around and opening not in inner and closing not in inner:
                text = inner.strip()
        whole = _TEXT_COMMAND.fullmatch(text)
        text = whole[1].strip() if whole else text
        if text == before:
            break
    return text


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """(start of the command, start of the content, end of the content) of each complete, outermost box [characters]."""
    opened: list[tuple[int, int] | None] = []  # a box, or None for another brace
    found: list[tuple[int, int, int]] = []
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            begun = opened.pop() if opened else None
            if begun is not None:
                while found and found[-1][0] > begun[0]:  # a nested box
                    found.pop()
                found.append((*begun, match.start()))
        elif token == "{" or "box" in token:
            opened.append(None if token == "{" else (match.start(), match.end()))
    return found


def last_box_place(text: str) -> tuple[int, int] | None:
    """Start and end of the content of the last complete ``\\boxed{...}`` [characters], or None."""
    boxes = _boxes(text)
    return boxes[-1][1:] if boxes else None


def boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}``, or of the last boxes that form one answer.

    Boxes form one answer if only ``or``, ``and``, a comma or a name such as ``x =`` separates them.
    """
    boxes = _boxes(text)
    if not boxes:
        bare = _BARE_BOX.findall(text)
        return normalized(bare[-1]) if bare else None
    first = len(boxes) - 1
    while first > 0 and _joined(text[boxes[first - 1][2] + 1 : boxes[first][0]]):
        first -= 1
    parts: dict[str, None] = {}  # an ordered set: an answer may be boxed twice
    for start, begin, end in boxes[first:]:
        name = _NAME_BEFORE.search(text[max(0, start - 16) : start]) if first < len(boxes) - 1 else None
        content = normalized(text[begin:end])
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
    """The last line of GSM8K, rather than a Markdown heading, which has text after it or contains words."""
    start = text.rfind("####")
    if start < 0 or text[start - 1 : start] == "#":
        return None
    start += 4
    rest = text[start:]
    if "\n" in rest.strip() or len(rest.strip()) > _LONGEST_SENTENCE:
        return None
    return None if _IN_WORDS.match(rest) else (start, len(text))


def tagged(text: str) -> str | None:
    """The content of the last ``<answer>...</answer>``, or the answer in it."""
    place = _last_tag_place(text)
    if place is None:
        return None
    inside = text[slice(*place)]
    return boxed(inside) or announced(inside) or normalized(inside)


def hashed(text: str) -> str | None:
    """The rest of the line after the last ``####``, as in GSM8K."""
    place = _last_hashes_place(text)
    return None if place is None else normalized(text[slice(*place)])


def announced(text: str) -> str | None:
    """The rest of the sentence after the last "the answer is", "Answer:" or heading "Final Answer"."""
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
            # `$x$ and $y$`, `$12$ cm`: the rest of the line belongs to the answer unless a sentence begins there.
            if close > 0 and not re.match(r"\s{0,3}(?:[A-Za-z]{1,6}\s?[$.\n]|(?:and|or)\b|,\s?\$|\\text)", after):
                return normalized(rest[: close + len(closing)]) or None
    stop = _SENTENCE_END.search(rest)
    sentence = rest[: stop.start()] if stop else rest
    return None if len(sentence) > _LONGEST_SENTENCE else normalized(sentence) or None


def any_form(text: str) -> str | None:
    """The last of box, tag and hashes; without any of them, the answer in a sentence.

    After a truncated box or tag there is no answer.
    """
    places = {boxed: last_box_place(text), tagged: _last_tag_place(text), hashed: _last_hashes_place(text)}
    found = {extract: place for extract, place in places.items() if place is not None}
    if found:
        # A tag around a box ends last; `tagged` extracts the box.
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
    """An extractor by name, or by import path (module.function or module:function).

    Raises:
        ValueError: If it does not exist.
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name]
    if "." not in name and ":" not in name:
        raise ValueError(
            f"answer_extractor: unknown extractor {name!r}; choose one of {', '.join(EXTRACTORS)}, or module.function"
        )
    return imported("answer_extractor", name)


def final_answer(completion: str, extractor: str = "auto") -> str | None:
    """The final answer of a completion (the answer only, not the reasoning), or None without an answer.

    Thinking between ``<think>`` and ``</think>`` is ignored. A completion that ends within it has no answer.

    Args:
        completion: Text of the completion.
        extractor: Name of an extractor in `EXTRACTORS`, or an import path.

    Raises:
        ValueError: If the extractor does not exist, or returns neither text nor None.
    """
    answered = after_thinking(completion)
    if answered is None:
        return None
    answered = answered.rstrip()
    if end := _END_TOKEN.search(answered[-30:]):
        answered = answered[: end.start() - end.end()]
    return _extract(answered, extractor) or None


def reference_answer(solution: str, extractor: str = "auto") -> str:
    """r+: the answer in a `solution` column, which contains either the answer alone or a worked solution.

    Uses the extractor of completions. If it finds no answer, the whole text is the answer.
    """
    solution = after_thinking(solution) or solution
    found = _extract(solution, extractor)
    return normalized(solution) if found is None else found


def _extract(text: str, extractor: str) -> str | None:
    found = find_extractor(extractor)(text)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"answer_extractor={extractor!r} must return text or None, got {found!r}")
    return found
