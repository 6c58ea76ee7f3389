"""References: each rule for r-, and each case in which there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cepo.references.groups import References, Rollout
from cepo.references.negatives import choose_references

RULES = ("lowest_reward", "most_common", "own", "mixture", "own_or_mixture")


def right(answer="7", reward=1.0):
    return Rollout(answer, reward, True)


def wrong(answer, reward=0.0):
    return Rollout(answer, reward, False)


def negatives(attempts, rule, **options):
    return [reference.negatives for reference in choose_references(attempts, "7", rule=rule, **options)]


def test_lowest_reward_takes_the_lowest_and_ties_go_to_the_first():
    assert negatives([right(), wrong("5", 0.2), wrong("4", 0.1), wrong("3", 0.1)], "lowest_reward") == [("4",)] * 4


def test_most_common_counts_spellings_once():
    attempts = [right(), wrong("1"), wrong("0.5"), wrong(r"\frac{1}{2}")]
    assert negatives(attempts, "most_common") == [("0.5",)] * 4


def test_own_gives_wrong_rollouts_their_own_answer():
    attempts = [right(), wrong("3"), wrong("4"), wrong("3")]
    assert negatives(attempts, "own") == [("3",), ("3",), ("4",), ("3",)]


def test_mixture_holds_all_distinct_wrong_answers_the_frequent_first():
    attempts = [wrong("1"), wrong("2"), wrong("2"), right(), wrong("0.5"), wrong(r"\frac{1}{2}"), wrong("1/2")]
    assert negatives(attempts, "mixture") == [("0.5", "2", "1")] * 7
    assert negatives(attempts, "mixture", max_negatives=2) == [("0.5", "2")] * 7


def test_own_or_mixture():
    attempts = [right(), wrong("3"), wrong("4")]
    assert negatives(attempts, "own_or_mixture") == [("3", "4"), ("3",), ("4",)]


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rejected_rollout_there_is_no_negative(rule):
    references = choose_references([right(), right()], "7", rule=rule)
    assert references == [References("7", (), "no_rejected")] * 2


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_that_was_not_announced_is_never_a_negative(rule):
    references = choose_references([right(), wrong(None), wrong("")], "7", rule=rule)
    assert references == [References("7", (), "no_incorrect_answer")] * 3


@pytest.mark.parametrize("rule", RULES)
def test_a_right_answer_marked_down_for_its_format_is_never_a_negative(rule):
    """The verifier accepts it (correct), but its total reward is the lowest."""
    attempts = [right(reward=1.0), right("7", reward=-1.0), wrong("5", reward=0.0)]
    assert all(found == ("5",) for found in negatives(attempts, rule))


@pytest.mark.parametrize("rule", RULES)
def test_another_spelling_of_the_right_answer_is_never_a_negative(rule):
    """Even if the verifier rejects it, telling a teacher that r- is r+ would say nothing."""
    references = choose_references([right(), wrong("7.0")], "7", rule=rule)
    assert references[0] == References("7", (), "no_incorrect_answer")


@pytest.mark.parametrize("rule", RULES)
def test_a_rollout_without_a_verdict_is_not_wrong(rule):
    references = choose_references([right(), Rollout("5", 0.0, None)], "7", rule=rule)
    assert references == [References("7", (), "no_rejected")] * 2


@pytest.mark.parametrize("rule", ["own", "own_or_mixture"])
def test_a_wrong_rollout_without_an_answer_gets_the_most_common_one_and_says_so(rule):
    references = choose_references([right(), wrong(None), wrong("3"), wrong("4"), wrong("4")], "7", rule=rule)
    assert references[1] == References("7", ("4",), "own_missing", (3,))


def test_the_positive_reference_is_the_answer_of_the_solution():
    (reference, _) = choose_references([right(), wrong("3")], r"Long reasoning, so \boxed{7}")
    assert reference == References("7", ("3",), None, (1,))


@pytest.mark.parametrize(("options", "named"), [({"rule": "worst"}, "worst"), ({"max_negatives": 0}, "got 0")])
def test_bad_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        choose_references([right()], "7", **options)


attempts_of_groups = st.lists(
    st.builds(
        Rollout,
        st.one_of(st.none(), st.sampled_from(["7", "1", "2", "3", "4", "5"])),
        st.floats(-1, 1),
        st.one_of(st.none(), st.booleans()),
    ),
    min_size=1,
    max_size=8,
)


@given(attempts_of_groups, st.sampled_from(RULES), st.integers(1, 5))
def test_every_negative_is_the_answer_of_a_rejected_rollout_and_differs_from_the_right_one(attempts, rule, most):
    references = choose_references(attempts, "7", rule=rule, max_negatives=most, same=lambda one, other: one == other)
    usable = {attempt.answer for attempt in attempts if attempt.correct is False} - {None, "7"}
    assert len(references) == len(attempts)
    for attempt, reference in zip(attempts, references, strict=True):
        assert reference.positive == "7"
        assert set(reference.negatives) <= usable
        assert bool(reference.negatives) == bool(usable)
        assert len(set(reference.negatives)) == len(reference.negatives) <= most
        if rule.startswith("own") and attempt.correct is False and attempt.answer in usable:
            assert reference.negatives == (attempt.answer,)
