"""What a policy gets wrong in the figures task: reading, arithmetic, copying or the last line.

Every number of a completion is judged by what the completion itself wrote before, so that a mistake counts once, and
what follows from it does not.
"""

from dataclasses import dataclass

from .problem import Problem
from .solutions import Span, annotate

MISTAKES = {
    "reading": "a label or the first angle, written otherwise than printed",
    "arithmetic": "a step whose three numbers do not add up to 180",
    "copying": "a step that does not go on from the result before",
    "box": "a last line that does not repeat the results",
    "form": "a completion without three numbers a step",
}


@dataclass(frozen=True)
class Number:
    """A number of a completion, and what it should be.

    Attributes:
        place: The same for the same number of another completion of the problem.
        kind: Which of `MISTAKES` it is if it is wrong.
        span: Where it stands.
        text: The number as written.
        expected: The number as it should be after those before it; None if there should be none.
        truth: The number of the right solution; None if there is none.
    """

    place: int
    kind: str
    span: Span
    text: str
    expected: str | None
    truth: str | None

    def wrong_at(self, digits: slice) -> bool:
        """Whether these digits are wrong; none are of a number of the right solution, whatever it follows from."""
        if self.text in (self.expected, self.truth):
            return False
        return self.expected is None or self.text[digits] != self.expected[digits]

    @property
    def right(self) -> bool:
        return self.text == self.expected


def judged_numbers(problem: Problem, completion: str) -> list[Number]:
    """The numbers of a completion's steps, three a step, and those in its box."""
    spans = annotate(problem, completion).spans
    chain = [span for span in spans if span.kind != "answer"][: 3 * len(problem.labels)]
    texts = [completion[span.start : span.end] for span in chain]
    found = []
    angles = (problem.start, *problem.angles)
    for place, (span, text) in enumerate(zip(chain, texts, strict=True)):
        step, part = divmod(place, 3)
        truth = str((angles[step], problem.labels[step], angles[step + 1])[part])
        if part == 2:
            kind, expected = "arithmetic", str(180 - int(texts[place - 2]) - int(texts[place - 1]))
        elif part == 0 and step > 0:
            kind, expected = "copying", texts[place - 1]
        else:
            kind, expected = "reading", truth
        found.append(Number(place, kind, span, text, expected, truth))
    results = texts[2::3]
    for span in spans:
        if span.kind == "answer":
            repeated = results[span.step] if span.step < len(results) else None
            asked = str(problem.angles[span.step]) if span.step < len(problem.angles) else None
            place = 3 * len(problem.labels) + span.step
            found.append(Number(place, "box", span, completion[span.start : span.end], repeated, asked))
    return found
