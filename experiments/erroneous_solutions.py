"""Steps of solutions with errors, for the warm start of the figures policy and for tests."""

from random import Random

from cepo.tasks.figures.beliefs import believed_label, believed_result
from cepo.tasks.figures.problem import Problem


def _erroneous_step(known: int, label: int, rng: Random) -> tuple[int, int]:
    """Label and result of a step with an error: a misread digit, or a slip in the subtraction."""
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
    """The steps of a solution: (known angle, label, result).

    A step has a random error with probability `error_rate`; otherwise each number with a belief (`beliefs`) is the
    believed one with probability `belief_rate`. Later steps follow from earlier ones. Steps with a number outside of
    10 to 99 are drawn again.

    Raises:
        ValueError: If a rate is 1 or more, with which steps might be drawn forever.
    """
    if max(error_rate, belief_rate) >= 1:
        raise ValueError("error_rate and belief_rate must be below 1: some errors lead to numbers without two digits")
    while True:
        steps, known = [], problem.start
        for step, label in enumerate(problem.labels):
            if rng.random() < error_rate:
                read, result = _erroneous_step(known, label, rng)
            else:
                believes, errs = (belief_rate > 0 and rng.random() < belief_rate for _ in range(2))
                read = believed_label(label, step) if believes else label
                result = believed_result(known, read, step) if errs else 180 - known - read
            steps.append((known, read, result))
            known = result
        if all(10 <= number <= 99 for step in steps for number in step):
            return steps
