"""What hints carry beyond answers."""

from dataclasses import replace

import pytest

from cepo.references.groups import Rollout
from cepo.references.hint_content import HintContent, with_contents
from cepo.references.negatives import choose_references

ATTEMPTS = [
    Rollout("7", 1.0, True, "so it is 7"),
    Rollout("3", 0.0, False, "perhaps 3"),
    Rollout("7", 1.0, True, "surely 7"),
    Rollout("3", 0.0, False, "again 3"),
    Rollout("4", 0.0, False, "or 4"),
]
SOLUTION = r"Long reasoning, so \boxed{7}"


def cut(text, part, tokens):
    words = text.split()
    return " ".join(words[:tokens] if part == "prefix" else words[-tokens:])


def told(content, rule="own_or_mixture", attempts=ATTEMPTS):
    references = choose_references(attempts, SOLUTION, rule=rule)
    return with_contents(references, attempts, SOLUTION, content, cut)


def test_answers_are_the_references():
    assert told(HintContent()) == choose_references(ATTEMPTS, SOLUTION, rule="own_or_mixture")


def test_solutions_and_rollouts():
    found = told(HintContent(positive="solution", negative="rollout"))
    assert {one.positive for one in found} == {SOLUTION}
    assert found[0].negatives == ("perhaps 3", "or 4")  # the first rollout of each answer
    assert found[2].negatives == ("perhaps 3", "or 4")


def test_nobody_is_told_its_own_text():
    found = told(HintContent(negative="rollout"))
    assert [one.negatives for one in found[1:4]] == [("again 3",), ("perhaps 3", "or 4"), ("perhaps 3",)]
    assert found[4].negatives == ("4",)
    assert [one.fallback for one in found] == [None, None, None, None, "no_incorrect_rollout"]
    mixture = told(HintContent(negative="rollout"), rule="mixture")
    assert mixture[4].negatives == ("perhaps 3", "4")


def test_a_rollout_with_the_same_text_is_not_another_one():
    right, wrong = ATTEMPTS[0], ATTEMPTS[4]
    found = told(HintContent(positive="rollout", negative="rollout"), "own", [right, right, wrong, wrong])
    assert [one.positive for one in found] == ["7", "7", right.text, right.text]
    assert [one.negatives for one in found] == [(wrong.text,), (wrong.text,), ("4",), ("4",)]
    assert [one.fallback for one in found] == ["no_correct_rollout"] * 2 + ["no_incorrect_rollout"] * 2
    other = ATTEMPTS[2]
    found = told(HintContent(positive="rollout"), "own", [right, right, other, wrong])
    assert [one.positive for one in found] == [other.text, other.text, right.text, right.text]


def test_a_right_rollout_is_another_one():
    found = told(HintContent(positive="rollout"))
    assert [one.positive for one in found] == ["surely 7", "so it is 7", "so it is 7", "so it is 7", "so it is 7"]
    alone = told(HintContent(positive="rollout"), attempts=ATTEMPTS[:2])
    assert [one.fallback for one in alone] == ["no_correct_rollout", None]
    assert alone[0].positive == "7"
    # With rejected rollouts to be told as well, that reason stays: it is what keeps a student from being taught.
    none_right = [replace(attempt, correct=False) for attempt in ATTEMPTS]
    both = told(HintContent(positive="rollout", negative="rollout"), attempts=none_right, rule="own")
    assert {one.fallback for one in both} == {"no_correct_rollout"}


@pytest.mark.parametrize(("part", "positive"), [("prefix", "Long reasoning,"), ("suffix", r"so \boxed{7}")])
def test_parts(part, positive):
    content = HintContent("solution", "rollout", positive_part=part, negative_part="suffix", tokens=2)
    (one, *_) = told(content, rule="most_common")
    assert one.positive == positive
    assert one.negatives == ("perhaps 3",)
    (whole, *_) = told(replace(content, positive_part="whole", negative_part=part, tokens=1), rule="most_common")
    assert whole.positive == SOLUTION
    assert whole.negatives == ("perhaps" if part == "prefix" else "3",)
