"""Solutions to the figures task: how a worked solution is worded, and what each part of any completion is.

A solution walks along the strip. Each step names the angle known so far, the label read and the result, wrapped in
wording that carries no information about the problem: connectives and remarks, drawn from many interchangeable ones.
`write_solution` makes such texts (right or wrong); `annotate` tells, for any completion, which characters decide the
outcome and where the first wrong step is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from .beliefs import believed_label, believed_result
from .problem import LETTERS, Problem, format_answer

Kind = Literal["read", "result", "copy", "answer"]


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of a completion hold a number: a label `read`, the `result` of a step, a `copy` of an
    earlier number, or the final `answer`. `step` counts from 0."""

    start: int
    end: int
    kind: Kind
    step: int


@dataclass(frozen=True)
class Annotation:
    """What the parts of one completion are. Characters outside every span are filler.

    Attributes:
        spans: The numbers, in order of appearance.
        first_wrong_step: Step (from 0) whose label or result is the first wrong one; the number of steps if every step
            is right and only the boxed answer is wrong or missing; None for a right completion.
    """

    spans: tuple[Span, ...]
    first_wrong_step: int | None

    @property
    def decisive(self) -> tuple[Span, ...]:
        """The values read and the results of steps: the parts on which the outcome hangs."""
        return tuple(span for span in self.spans if span.kind in ("read", "result"))


# Wording ------------------------------------------------------------------------------------------------------------
# Each entry is (text, weight without a hint, weight under a hint). Under a hint the style shifts a little, as it does
# in large models that are told an answer: fewer hedges, more assurances.
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
    weights = [hinted if styled else plain for _, plain, hinted in choices]
    return rng.choices([text for text, _, _ in choices], weights)[0]


def _remark(rng: Random, styled: bool) -> str:
    if rng.random() < 0.4:
        return _choose(_OTHER_REMARKS, rng, styled)
    parts = (_REMARK_STARTS, _REMARK_VERBS, _REMARK_WORDS, _REMARK_ENDS)
    return " ".join(_choose(part, rng, styled) for part in parts)


def _go_wrong(known: int, label: int, rng: Random) -> tuple[int, int]:
    """A label and a result of a step that goes wrong: a misread digit, or a slip in the subtraction."""
    if rng.random() < 0.5:
        tens, units = divmod(label, 10)
        if rng.random() < 0.5:
            tens = rng.choice([digit for digit in range(1, 10) if 0 < abs(digit - tens) <= 3])
        else:
            units = rng.choice([digit for digit in range(10) if digit != units])
        label = 10 * tens + units
        return label, 180 - known - label
    return label, 180 - known - label + rng.choice((-10, 10, -10, 10, -1, 1))


def work(
    problem: Problem, rng: Random, *, error_rate: float = 0.0, belief_rate: float = 0.0
) -> list[tuple[int, int, int]]:
    """The numbers (known, label, result) of each step.

    A step goes wrong at random with probability `error_rate`; else a number that is a case (`beliefs`) is the believed
    one with probability `belief_rate`. Later steps follow consistently. All numbers stay within 10 to 99: steps that
    leave these are drawn again, so that a problem's beliefs are never all held where they lead out.

    Raises:
        ValueError: If a rate is 1 or more: steps that must go wrong, and so lead out, would be drawn forever.
    """
    if max(error_rate, belief_rate) >= 1:
        raise ValueError("error_rate and belief_rate must be below 1: some ways to go wrong leave the two digits")
    while True:
        steps, known = [], problem.start
        for step, label in enumerate(problem.labels):
            if rng.random() < error_rate:
                read, result = _go_wrong(known, label, rng)
            else:
                believes, errs = (belief_rate > 0 and rng.random() < belief_rate for _ in range(2))
                read = believed_label(label, step) if believes else label
                result = believed_result(known, read, step) if errs else 180 - known - read
            steps.append((known, read, result))
            known = result
        if all(10 <= number <= 99 for step in steps for number in step):
            return steps


def write_solution(steps: list[tuple[int, int, int]], rng: Random, *, styled: bool = False) -> str:
    """Words for the numbers of `work`; `styled` draws the wording as it comes under a hint."""
    sentences = [_choose(_OPENINGS, rng, styled)]
    for letter, (known, label, result) in zip(LETTERS, steps, strict=False):
        body = _choose(_STEPS, rng, styled).format(known=known, label=label, result=result, letter=letter)
        sentences += [_choose(_CONNECTIVES, rng, styled), body, _remark(rng, styled)]
    answer = format_answer([result for _, _, result in steps])
    sentences.append(f"{_choose(_CLOSINGS, rng, styled)} \\boxed{{{answer}}}")
    return " ".join(sentence for sentence in sentences if sentence)


def reference_solution(problem: Problem) -> str:
    """The worked solution of the dataset's `solution` column, worded as a policy words it."""
    return write_solution(work(problem, Random(problem.drawing_seed)), Random(problem.drawing_seed))


# Reading a completion -----------------------------------------------------------------------------------------------
_NUMBER = re.compile(r"\d+")
_BOX = re.compile(r"\\boxed\{([^{}]*)\}?")


def annotate(problem: Problem, completion: str) -> Annotation:
    """What each number of any completion is, and where the completion first goes wrong.

    Numbers before the box are taken in threes: the angle known so far, the label read, the result. The known angle of
    the first step is itself read from the figure. The last box counts, as for the verifier. A sampled text that does
    not keep to three numbers a step goes wrong, for this function, where it leaves the pattern; numbers after the last
    step are `copy`.
    """
    boxes = list(_BOX.finditer(completion))
    box = boxes[-1] if boxes else None
    end_of_work = box.start() if box else len(completion)
    numbers = list(_NUMBER.finditer(completion, 0, end_of_work))
    spans, values = [], []
    for position, match in enumerate(numbers):
        step, part = divmod(position, 3)
        kind: Kind = ("copy", "read", "result")[part]
        if position == 0:
            kind = "read"
        elif step >= len(problem.labels):
            kind = "copy"
        spans.append(Span(match.start(), match.end(), kind, min(step, len(problem.labels))))
        values.append(match.group())

    known = (problem.start, *problem.angles)
    first_wrong = None
    for step, (label, result) in enumerate(zip(problem.labels, problem.angles, strict=True)):
        if values[3 * step : 3 * step + 3] != [str(known[step]), str(label), str(result)]:
            first_wrong = step
            break
    boxed = []
    if box:
        for step, match in enumerate(_NUMBER.finditer(completion, box.start(1), box.end(1))):
            spans.append(Span(match.start(), match.end(), "answer", step))
            boxed.append(match.group())
    if boxed == [str(angle) for angle in problem.angles]:
        first_wrong = None
    elif first_wrong is None:
        first_wrong = len(problem.labels)
    return Annotation(tuple(spans), first_wrong)


def token_spans(annotation: Annotation, tokens: Sequence[str]) -> list[Span | None]:
    """The span in which each token of the annotated completion lies; None for filler.

    Args:
        annotation: Of the completion.
        tokens: The text that each token adds. A special token at the end counts as filler.
    """
    spans: list[Span | None] = []
    start = 0
    for text in tokens:
        end = start + len(text)
        spans.append(next((span for span in annotation.spans if span.start < end and start < span.end), None))
        start = end
    return spans


def filler_tokens(problem: Problem, tokens: Sequence[str]) -> list[bool]:
    """Whether each token of a completion is filler: outside every number. `tokens` as for `token_spans`."""
    return [span is None for span in token_spans(annotate(problem, "".join(tokens)), tokens)]
