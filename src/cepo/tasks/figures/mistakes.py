"""Mistakes in the figures task: numbers that do not follow from the numbers before them in the same completion."""

from dataclasses import dataclass
from typing import Literal

from .problem import Problem
from .solutions import Span, annotate

Mistake = Literal[
    "reading",  # a label, or the first angle, is not the printed one
    "arithmetic",  # the three numbers of a step do not add up to 180
    "copying",  # a step does not start with the previous result
    "box",  # the answer does not repeat the results
]


@dataclass(frozen=True)
class Number:
    """A number of a completion, and the number that follows from those before it.

    Attributes:
        place: Identifies the number among completions of the same problem.
        kind: The kind of mistake, if the number is incorrect.
        span: Characters of the number.
        text: The number as written.
        expected: The number that follows from those before it. None if there should be no number.
        truth: The number of the correct solution. None if there is none.
    """

    place: int
    kind: Mistake
    span: Span
    text: str
    expected: str | None
    truth: str | None

    @property
    def correct(self) -> bool:
        return self.text == self.expected

    def incorrect_at(self, digits: slice) -> bool:
        """Whether these digits are incorrect. A number of the correct solution has no incorrect digits."""
        if self.text in (self.expected, self.truth):
            return False
        return self.expected is None or self.text[digits] != self.expected[digits]


def judged_numbers(problem: Problem, completion: str) -> list[Number]:
    """The numbers of a completion's steps, three per step, and of its answer."""
    spans = annotate(problem, completion)
    chain = [span for span in spans if span.kind != "answer"][: 3 * len(problem.labels)]
    texts = [completion[span.start : span.end] for span in chain]
    angles = (problem.start, *problem.angles)
    found = []
    for place, (span, text) in enumerate(zip(chain, texts, strict=True)):
        step, part = divmod(place, 3)
        truth = str((angles[step], problem.labels[step], angles[step + 1])[part])
        kind: Mistake = "reading"
        expected = truth
        if part == 2:
            kind, expected = "arithmetic", str(180 - int(texts[place - 2]) - int(texts[place - 1]))
        elif part == 0 and step > 0:
            kind, expected = "copying", texts[place - 1]
        found.append(Number(place, kind, span, text, expected, truth))
    results = dict(enumerate(texts[2::3]))
    answer = dict(enumerate(map(str, problem.angles)))
    for span in spans:
        if span.kind == "answer":
            place, text = 3 * len(problem.labels) + span.step, completion[span.start : span.end]
            found.append(Number(place, "box", span, text, results.get(span.step), answer.get(span.step)))
    return found
