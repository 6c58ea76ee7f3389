"""Solutions of the figures task: their wording, and the numbers in any completion.

A solution takes one step per triangle. A step names the known angle, the label and the result, in wording that carries
no information about the problem: connectives and remarks, drawn from many interchangeable ones.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from .problem import LETTERS, Problem, format_answer

Kind = Literal["read", "result", "copy", "answer"]


@dataclass(frozen=True)
class Span:
    """A number at the characters `start` to `end` of a completion.

    Attributes:
        start, end: Characters.
        kind: A label that was `read`, the `result` of a step, a `copy` of an earlier number, or part of the `answer`.
        step: The step, or the position in the answer, from 0.
    """

    start: int
    end: int
    kind: Kind
    step: int


# (text, weight without a hint, weight with a hint). A hint shifts the style, as in large models that are given an
# answer: fewer hedges, more assurances.
_Choices = list[tuple[str, float, float]]

_OPENINGS: _Choices = [
    ("Let me look at the figure.", 3, 3),
    ("The lines are parallel, so equal angles carry over.", 3, 2),
    ("I will go from left to right.", 3, 4),
    ("Let us work along the strip.", 2, 2),
    ("First I look at the left corner.", 2, 2),
]
_CONNECTIVES: _Choices = [
    ("Next,", 3, 2.5),
    ("Then", 3, 3),
    ("Now", 3, 2.5),
    ("After that,", 2, 2),
    ("From there,", 2, 2.5),
    ("Going on,", 2, 2),
    ("So", 2, 3),
    ("Moving along,", 1.5, 1),
]
_STEPS: _Choices = [
    ("{known} and {label} leave {result} for {letter}.", 3, 3),
    ("{known} with {label} gives {letter} as {result}.", 3, 3.5),
    ("taking {known} and {label} away makes {letter} {result}.", 2, 2),
    ("from {known} and {label} we get {result} for {letter}.", 3, 2.5),
]
_REMARK_STARTS: _Choices = [("This", 4, 4), ("That", 4, 3.5), ("The value", 2, 2.5), ("It", 3, 3)]
_REMARK_VERBS: _Choices = [
    ("looks", 3, 2.5),
    ("seems", 3, 2),
    ("is", 3, 4),
    ("appears", 2, 1.5),
]
_REMARK_WORDS: _Choices = [
    ("fine", 3, 3),
    ("right", 3, 4),
    ("plausible", 3, 2.5),
    ("good", 3, 3),
    ("sensible", 2, 2),
    ("clear", 2, 2.5),
]
_REMARK_ENDS: _Choices = [
    ("here.", 3, 3),
    ("so far.", 3, 3),
    ("in the figure.", 3, 3),
    ("to me.", 2, 1.5),
    ("for this triangle.", 2, 2.5),
    ("at first sight.", 1.5, 1),
]
_OTHER_REMARKS: _Choices = [
    ("Each triangle has the same sum.", 3, 3),
    ("The same angle returns on the other line.", 3, 3),
    ("We keep this angle for the next triangle.", 3, 3),
    ("I go on with the neighbour.", 2, 2),
    ("", 4, 4.5),
]
_CLOSINGS: _Choices = [
    ("The answer is", 3, 3),
    ("So the angles are", 3, 3.5),
    ("In order this gives", 2, 2),
    ("Altogether we have", 2, 1.5),
]


def _choose(choices: _Choices, rng: Random, styled: bool) -> str:
    texts, plain, hinted = zip(*choices, strict=True)
    return rng.choices(texts, hinted if styled else plain)[0]


def _remark(rng: Random, styled: bool) -> str:
    if rng.random() < 0.4:
        return _choose(_OTHER_REMARKS, rng, styled)
    parts = (_REMARK_STARTS, _REMARK_VERBS, _REMARK_WORDS, _REMARK_ENDS)
    return " ".join(_choose(part, rng, styled) for part in parts)


def write_solution(steps: list[tuple[int, int, int]], rng: Random, *, styled: bool = False) -> str:
    """Words for steps of (known angle, label, result); `styled` draws the wording of a completion under a hint."""
    sentences = [_choose(_OPENINGS, rng, styled)]
    for letter, (known, label, result) in zip(LETTERS, steps, strict=False):
        body = _choose(_STEPS, rng, styled).format(known=known, label=label, result=result, letter=letter)
        sentences += [_choose(_CONNECTIVES, rng, styled), body, _remark(rng, styled)]
    answer = format_answer([result for _, _, result in steps])
    sentences.append(f"{_choose(_CLOSINGS, rng, styled)} \\boxed{{{answer}}}")
    return " ".join(sentence for sentence in sentences if sentence)


def reference_solution(problem: Problem) -> str:
    """The worked solution in the dataset's `solution` column."""
    steps = list(zip((problem.start, *problem.angles), problem.labels, problem.angles, strict=False))
    return write_solution(steps, Random(problem.drawing_seed))


_NUMBER = re.compile(r"\d+")
_BOX = re.compile(r"\\boxed\{([^{}]*)\}?")


def annotate(problem: Problem, completion: str) -> list[Span]:
    """The numbers of a completion, in order. Characters outside of them are filler.

    Numbers before the box come in threes: known angle, label, result. The first known angle is read from the figure,
    too. Numbers after the last step are copies. Of several boxes the last one counts, as for the verifier.
    """
    boxes = list(_BOX.finditer(completion))
    box = boxes[-1] if boxes else None
    count = len(problem.labels)
    spans = []
    for position, match in enumerate(_NUMBER.finditer(completion, 0, box.start() if box else len(completion))):
        step, part = divmod(position, 3)
        kind: Kind = ("copy", "read", "result")[part] if step < count else "copy"
        spans.append(Span(match.start(), match.end(), "read" if position == 0 else kind, min(step, count)))
    answer = _NUMBER.finditer(completion, box.start(1), box.end(1)) if box else ()
    return spans + [Span(match.start(), match.end(), "answer", step) for step, match in enumerate(answer)]


def token_spans(spans: Sequence[Span], tokens: Sequence[str]) -> list[Span | None]:
    """The number in which each token of a completion lies; None for filler."""
    found: list[Span | None] = []
    start = 0
    for text in tokens:
        end = start + len(text)
        found.append(next((span for span in spans if span.start < end and start < span.end), None))
        start = end
    return found


def filler_tokens(problem: Problem, tokens: Sequence[str]) -> list[bool]:
    """Whether each token of a completion is filler. `tokens` as for `token_spans`."""
    return [span is None for span in token_spans(annotate(problem, "".join(tokens)), tokens)]
