"""Hint content beyond answers."""

from dataclasses import replace

import pytest

from cepo.references.groups import Rollout
from cepo.references.hint_content import HintContent, with_contents
from cepo.references.negatives import choose_references

ROLLOUTS = [
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


def contents(content, rule="own_or_mixture", rollouts=ROLLOUTS):
    references = choose_references(rollouts, SOLUTION, rule=rule)
    return with_contents(references, rollouts, SOLUTION, content, cut)


def test_answers_are_the_references():
    assert contents(HintContent()) == choose_references(ROLLOUTS, SOLUTION, rule="own_or_mixture")


def test_solutions_and_rollouts():
    found = contents(HintContent(positive="solution", negative="rollout"))
    assert {one.positive for one in found} == {SOLUTION}
    assert found[0].negatives == ("perhaps 3", "or 4")  # the first rollout of each answer
    assert found[2].negatives == ("perhaps 3", "or 4")


def test_a_hint_never_contains_the_text_of_its_rollout():
    found = contents(HintContent(negative="rollout"))
    assert [one.negatives for one in found[1:4]] == [("again 3",), ("perhaps 3", "or 4"), ("perhaps 3",)]
    assert found[4].negatives == ("4",)
    assert [one.fallback for one in found] == [None, None, None, None, "no_incorrect_rollout"]
    mixture = contents(HintContent(negative="rollout"), rule="mixture")
    assert mixture[4].negatives == ("perhaps 3", "4")


def test_a_rollout_with_the_same_text_is_not_another_one():
    correct, incorrect = ROLLOUTS[0], ROLLOUTS[4]
    content = HintContent(positive="rollout", negative="rollout")
    found = contents(content, "own", [correct, correct, incorrect, incorrect])
    assert [one.positive for one in found] == ["7", "7", correct.text, correct.text]
    assert [one.negatives for one in found] == [(incorrect.text,), (incorrect.text,), ("4",), ("4",)]
    assert [one.fallback for one in found] == ["no_correct_rollout"] * 2 + ["no_incorrect_rollout"] * 2
    other = ROLLOUTS[2]
    found = contents(HintContent(positive="rollout"), "own", [correct, correct, other, incorrect])
    assert [one.positive for one in found] == [other.text, other.text, correct.text, correct.text]


def test_a_correct_rollout_is_another_one():
    found = contents(HintContent(positive="rollout"))
    assert [one.positive for one in found] == ["surely 7", "so it is 7", "so it is 7", "so it is 7", "so it is 7"]
    alone = contents(HintContent(positive="rollout"), rollouts=ROLLOUTS[:2])
    assert [one.fallback for one in alone] == ["no_correct_rollout", None]
    assert alone[0].positive == "7"
    # The first fallback is kept: without a correct rollout a distillation has no teacher.
    all_incorrect = [replace(rollout, correct=False) for rollout in ROLLOUTS]
    both = contents(HintContent(positive="rollout", negative="rollout"), rollouts=all_incorrect, rule="own")
    assert {one.fallback for one in both} == {"no_correct_rollout"}


@pytest.mark.parametrize(("part", "positive"), [("prefix", "Long reasoning,"), ("suffix", r"so \boxed{7}")])
def test_parts(part, positive):
    content = HintContent("solution", "rollout", positive_part=part, negative_part="suffix", tokens=2)
    (one, *_) = contents(content, rule="most_common")
    assert one.positive == positive
    assert one.negatives == ("perhaps 3",)
    (whole, *_) = contents(replace(content, positive_part="whole", negative_part=part, tokens=1), rule="most_common")
    assert whole.positive == SOLUTION
    assert whole.negatives == ("perhaps" if part == "prefix" else "3",)
