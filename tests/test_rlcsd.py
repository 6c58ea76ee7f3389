"""RLCSD: sibling rollouts in hints, an additive placement, two means in the loss."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo import CEPOConfig, method_options
from cepo.methods import METHODS, StageContext
from cepo.references.groups import Rollout
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import logged, loss_inputs, task

from .reference import loops

__all__ = ["loss_inputs", "task"]  # fixtures

CORRECT = [Rollout("7", 1.0, True, f"correct {place}") for place in range(3)]
INCORRECT = [Rollout(str(place), 0.0, False, f"rejected {place}") for place in range(6)]
UNANSWERED = Rollout(None, 0.0, False, "rejected without an answer")


def references(rollouts, seed=0, **options):
    tools = StageContext(lambda text, part, tokens: text, random.Random(seed))
    return METHODS["rlcsd"].references(rollouts, r"so \boxed{7}", method_options("rlcsd", **options), tools)


def test_by_hand():
    """tau 0.02, strength 0.5: e = 0.02 adds 0.5 tanh(1) = 0.3808, e = 1 adds 0.5, e = 0.0007 less than 0.02."""
    inputs = inputs_of([[0.02, 1.0, -1.0, 0.0007]] * 3, [1.0, -0.3, 0.0])
    placed = placed_by("rlcsd", inputs)
    expected = [[1.3808, 1.5, 0.5, 1.0], [0.0, 0.0, -0.8, -0.3], [0.0] * 4]  # +0.08 and +0.2 would change the sign
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)
    assert placed.at_bound.tolist() == [[False] * 4, [True, True, False, False], [False] * 4]
    assert placed.scale.tolist() == [0.5] * 3
    # Nine of twelve tokens are selected, three are not.
    assert_close(placed.loss_weights[0], torch.tensor([12 / 9] * 3 + [12 / 3], dtype=torch.float64))


def test_a_rollout_without_siblings_is_not_trained_on():
    inputs = inputs_of([[1.0, 1.0], [0.0, 0.0]], [1.0, -1.0], scored=[True, False])
    placed = placed_by("rlcsd", inputs)
    assert placed.advantages[1].tolist() == [0.0, 0.0]
    assert (placed.shift[1] < 0).all()


values = st.floats(-3, 3)


@given(
    st.lists(st.tuples(values, st.booleans(), st.lists(values, min_size=4, max_size=4)), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=16, max_size=16),
    st.floats(0.01, 2),
    st.floats(0, 2),
    st.floats(0, 3),
    st.floats(0, 0.5),
)
def test_agrees_with_plain_loops_and_two_means(rows, kept, tau, strength, eta, threshold):
    advantages, read, evidence = map(list, zip(*rows, strict=True))
    mask = [kept[4 * row : 4 * row + 4] for row in range(len(rows))]
    low, high = -0.7, 0.9
    options = {"evidence_coefficient": 0.5, "evidence_beta": 2 * strength, "tau": tau, "selected_loss_weight": eta}
    options |= {"selection_threshold": threshold, "bonus_min": low, "bonus_max": high}
    inputs = inputs_of(evidence, advantages, mask=mask, scored=read)
    placed = placed_by("rlcsd", inputs, **options)
    expected, selected = loops.rlcsd(advantages, evidence, mask, read, tau, strength, threshold, low, high)
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    # TRL's mean over all tokens of A_t times its weight: the authors' sum of two means, by the share of scored tokens.
    counted = [[keep and was for keep in row] for row, was in zip(mask, read, strict=True)]
    scored, count = sum(map(sum, counted)), max(1, sum(map(sum, mask)))
    expected_loss = loops.rlcsd_loss(expected, selected, counted, eta) * scored / count
    assert (placed.in_loss.sum() / count).item() == pytest.approx(expected_loss, abs=1e-9)
    signs = inputs.advantages.sign().unsqueeze(-1)
    assert (placed.advantages * signs >= 0).all()


def test_hints_carry_siblings_and_never_the_rollout_itself():
    rollouts = [*CORRECT, *INCORRECT, UNANSWERED]
    seen = set()
    for seed in range(30):
        for place, found in enumerate(references(rollouts, seed)):
            assert rollouts[place].text not in found.positive
            assert found.positive.startswith("correct ")
            assert found.positive.endswith("Its final answer, 7, is the correct one.")
            assert len(found.negatives) == len(set(found.negatives)) == 4
            assert not any(rollouts[place].text in text or UNANSWERED.text in text for text in found.negatives)
            assert [rollouts[source].text for source in found.sources] == [t.split("\n")[0] for t in found.negatives]
            seen.add((place, found.positive))
    assert len(seen) == 3 * 2 + 7 * 3  # each correct sibling of each rollout is drawn at some time
    assert references(rollouts, 1) == references(rollouts, 1)


def test_fallbacks_without_siblings():
    one_correct = references([CORRECT[0], *INCORRECT[:2]])
    assert [found.fallback for found in one_correct] == ["no_correct_rollout", None, None]
    one_incorrect = references([*CORRECT[:2], INCORRECT[0], UNANSWERED])
    assert [found.fallback for found in one_incorrect] == [None, None, "no_incorrect_rollout", None]
    assert [len(found.negatives) for found in one_incorrect] == [1, 1, 0, 1]
    for found in (one_correct[0], one_incorrect[2]):
        assert METHODS["rlcsd"].contexts(found, method_options("rlcsd")) == []
    found = references([CORRECT[0], *INCORRECT[:2]], correct_hint="solution")
    correct = "so \\boxed{7}\nIts final answer, 7, is the correct one."  # the words of incorrect siblings
    assert [one.positive for one in found] == [correct] * 3
    boxless = Rollout(None, 1.0, True, "correct without a box")
    assert references([boxless, CORRECT[0], INCORRECT[0]])[1].positive.endswith(
        "Its final answer, 7, is the correct one."
    )


def test_incorrect_siblings_count_by_their_mean_probability():
    logps = torch.tensor([[[-1.0]], [[math.log(0.2)]], [[math.log(0.4)]]])
    found = METHODS["rlcsd"].evidence(logps, torch.ones(3, 1, dtype=torch.bool))
    assert_close(found.values, torch.tensor([[-1.0 - math.log(0.3)]]))


def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch):
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "rlcsd")
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    assert logged(trainer, "cepo/coefficient") == [0.5]
    assert batch["scored"].all()
    assert batch["advantages"].unique().numel() > 4


def test_a_group_with_one_correct_rollout(tmp_path, task, loss_inputs, monkeypatch):
    """It is not trained on, and serves as r+ for the incorrect ones."""

    def one(completions, **kwargs):
        return [float(row % 4 == 0) for row in range(len(completions))]

    _, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "rlcsd", reward=one)
    correct = batch["verdicts"] > 0
    assert correct.sum() == 2
    assert not batch["scored"][correct].any()
    assert not batch["advantages"][correct].any()
    assert batch["scored"][~correct].all()


@pytest.mark.parametrize("loss_type", ["grpo", "sapo", "luspo"])
def test_a_loss_that_is_no_mean_over_tokens_is_refused(tmp_path, loss_type):
    with pytest.raises(ValueError, match=f"mean over all tokens, which loss_type='{loss_type}' is not"):
        CEPOConfig(output_dir=str(tmp_path), method="rlcsd", loss_type=loss_type, bf16=False)


def test_unscored_rollouts_do_not_change_the_weight_of_others():
    """One scored rollout among three that are not: its tokens count as often as there are of them, and no more."""
    evidence, advantages = [[1.0, 1.0, 0.0, 0.0]] * 4, [1.0, -1.0, 1.0, -1.0]
    alone = placed_by("rlcsd", inputs_of(evidence[:1], advantages[:1]))
    among = placed_by("rlcsd", inputs_of(evidence, advantages, scored=[True, False, False, False]))
    assert_close(among.in_loss[0], alone.in_loss[0])
    assert not among.in_loss[1:].any()
    assert_close(among.loss_weights[0], torch.tensor([2.0] * 4, dtype=torch.float64))


def test_at_weight_zero_all_are_scored_as_at_a_small_weight():
    """The counts of the two means must not change where the weight of negative advantages reaches 0."""
    advantages, verdicts = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1.0, -1.0, 1.0])
    options = method_options("rlcsd", negative_advantage_weight=0.0)
    assert METHODS["rlcsd"].rollout_filter(advantages, verdicts, options).tolist() == [True, True, False]
