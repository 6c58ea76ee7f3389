"""The study of the shipped policy's taught mistakes."""

from experiments.beliefs import numbers_of, written

from cepo.tasks.figures import cases_of, make_problem
from cepo.tasks.figures.solutions import reference_solution


def test_number_written_in_a_case():
    problem = next(one for one in (make_problem("test", index) for index in range(50)) if len(cases_of(one)) == 1)
    (case,) = cases_of(problem)
    text = reference_solution(problem)
    assert len(numbers_of(problem, text)) == 3 * len(problem.labels)
    assert written(problem, case, text) == case.correct
    assert written(problem, case, "") is None
