"""References: each rule for r-, and each fallback."""

import pytest

from cepo.references.groups import References, Rollout
from cepo.references.negatives import choose_references

RULES = ("lowest_reward", "most_common", "own", "mixture", "own_or_mixture")


def correct(answer="7", reward=1.0):
    return Rollout(answer, reward, True)


def incorrect(answer, reward=0.0):
    return Rollout(answer, reward, False)


def negatives(rollouts, rule, **options):
    return [reference.negatives for reference in choose_references(rollouts, "7", rule=rule, **options)]


def test_lowest_reward_takes_the_lowest_and_ties_go_to_the_first():
    rollouts = [correct(), incorrect("5", 0.2), incorrect("4", 0.1), incorrect("3", 0.1)]
    assert negatives(rollouts, "lowest_reward") == [("4",)] * 4


def test_most_common_counts_spellings_once():
    rollouts = [correct(), incorrect("1"), incorrect("0.5"), incorrect(r"\frac{1}{2}")]
    assert negatives(rollouts, "most_common") == [("0.5",)] * 4


def test_own_is_the_own_answer_of_incorrect_rollouts():
    rollouts = [correct(), incorrect("3"), incorrect("4"), incorrect("3")]
    assert negatives(rollouts, "own") == [("3",), ("3",), ("4",), ("3",)]


def test_a_mixture_has_all_distinct_incorrect_answers_by_frequency():
    answers = ("1", "2", "2", "0.5", r"\frac{1}{2}", "1/2")
    rollouts = [correct(), *map(incorrect, answers)]
    assert negatives(rollouts, "mixture", max_negatives=4) == [("0.5", "2", "1")] * 7
    assert negatives(rollouts, "mixture", max_negatives=2) == [("0.5", "2")] * 7


def test_own_or_mixture():
    rollouts = [correct(), incorrect("3"), incorrect("4")]
    assert negatives(rollouts, "own_or_mixture") == [("3", "4"), ("3",), ("4",)]


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rejected_rollout_there_is_no_negative(rule):
    references = choose_references([correct(), correct()], "7", rule=rule)
    assert references == [References("7", (), "no_rejected")] * 2


@pytest.mark.parametrize("rule", RULES)
def test_a_rollout_without_an_answer_gives_no_negative(rule):
    references = choose_references([correct(), incorrect(None), incorrect("")], "7", rule=rule)
    assert references == [References("7", (), "no_incorrect_answer")] * 3


@pytest.mark.parametrize("rule", RULES)
def test_a_correct_answer_with_the_lowest_reward_is_never_a_negative(rule):
    """The verifier accepts it (correct), but its total reward is the lowest."""
    rollouts = [correct(reward=1.0), correct("7", reward=-1.0), incorrect("5", reward=0.0)]
    assert all(found == ("5",) for found in negatives(rollouts, rule))


@pytest.mark.parametrize("rule", RULES)
def test_another_spelling_of_the_correct_answer_is_never_a_negative(rule):
    """Even if the verifier rejects it: with r- equal to r+ there is no evidence."""
    references = choose_references([correct(), incorrect("7.0")], "7", rule=rule)
    assert references[0] == References("7", (), "no_incorrect_answer")


@pytest.mark.parametrize("rule", RULES)
def test_a_rollout_without_a_verdict_is_not_incorrect(rule):
    references = choose_references([correct(), Rollout("5", 0.0, None)], "7", rule=rule)
    assert references == [References("7", (), "no_rejected")] * 2


@pytest.mark.parametrize("rule", ["own", "own_or_mixture"])
def test_an_incorrect_rollout_without_an_answer_gets_the_most_common_one(rule):
    rollouts = [correct(), *map(incorrect, (None, "3", "4", "4"))]
    references = choose_references(rollouts, "7", rule=rule)
    assert references[1] == References("7", ("4",), "own_missing", (3,))


def test_the_positive_reference_is_the_answer_of_the_solution():
    (reference, _) = choose_references([correct(), incorrect("3")], r"Long reasoning, so \boxed{7}")
    assert reference == References("7", ("3",), None, (1,))


@pytest.mark.parametrize(("options", "named"), [({"rule": "worst"}, "worst"), ({"max_negatives": 0}, "got 0")])
def test_bad_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        choose_references([correct()], "7", **options)
