"""CEPO additive: a share of the advantage, and a bonus of evidence; the sign follows the verdict."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo import method_options
from cepo.credit import evidence
from cepo.methods import METHODS
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import half_right, logged, loss_inputs, task, train, weights_of, wrong_answers
from tests.support.values import advantage_values

from .reference import loops

__all__ = ["loss_inputs", "task"]  # fixtures


def test_by_hand():
    """tanh(log(3) / 2) is 1/2, and so is that of evidence 0.05 log 3 at tau 0.1. Negatives weigh 0.3."""
    half = 0.05 * math.log(3)
    placed = placed_by("cepo_additive", inputs_of([[half, 0.0, -half]] * 3, [2.0, -1.0, 0.0]))
    expected = torch.tensor([[0.4 + 0.25, 0.4, 0.4 - 0.25], [0.0, -0.06, -0.135], [0.0, 0.0, 0.0]]).double()
    assert_close(placed.advantages, expected)
    assert placed.at_bound.tolist() == [[False] * 3, [True, False, False], [False] * 3]
    assert placed.rollout_advantages.tolist() == pytest.approx([2.0, -0.3, 0.0])
    assert placed_by("cepo_additive", inputs_of([[half]], [1.0]), step=1000).advantages.item() == pytest.approx(0.45)


def test_from_probabilities():
    """P_T+ 0.6 against P_T- 0.2 is log 3 nats, eleven times tau: the whole bonus."""
    found = evidence(torch.tensor([[0.6, 0.2]]).double().log(), torch.tensor([[0.2, 0.6]]).double().log())
    placed = placed_by("cepo_additive", inputs_of(found.tolist(), [1.0]))
    assert_close(placed.advantages, torch.tensor([[0.7, 0.0]]).double(), atol=1e-6, rtol=0)


def test_a_group_without_correct_rollouts_by_hand():
    """In the incorrect rollout, the token likelier under r- gets -0.25, and the mean is -0.125; others keep 0."""
    half = 0.05 * math.log(3)
    inputs = inputs_of([[half, -half]] * 3, [0.0, 0.0, 0.0], verdicts=[-1.0, 1.0, 0.0])
    placed = placed_by("cepo_additive", inputs, negative_advantage_weight=1.0)
    assert_close(placed.advantages, torch.tensor([[0.0, -0.25], [0.0, 0.0], [0.0, 0.0]]).double())
    assert_close(placed.rollout_advantages, torch.tensor([-0.125, 0.0, 0.0]).double())
    assert_close(placed.shift[0], torch.tensor([-1 / 3, 1 / 3]).double())  # of 0.375, from -0.125 to -0.5
    assert_close(placed_by("cepo_additive", inputs).advantages, 0.3 * placed.advantages)
    left = placed_by("cepo_additive", inputs, learn_from_zero_variance_groups=False)
    assert not left.advantages.any()


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        ({}, [True, True, True, False, False]),
        ({"learn_from_zero_variance_groups": False}, [True, True, False, False, False]),
        ({"negative_advantage_weight": 0.0}, [True, False, False, False, False]),
    ],
    ids=str,
)
def test_scored_rollouts(options, scored):
    advantages, verdicts = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0])
    options = method_options("cepo_additive", **options)
    assert METHODS["cepo_additive"].rollout_filter(advantages, verdicts, options).tolist() == scored


rows = st.lists(
    st.tuples(
        st.one_of(advantage_values, st.just(0.0)),
        st.lists(st.floats(-9, 9), min_size=3, max_size=3),
        st.lists(st.booleans(), min_size=3, max_size=3),
        st.booleans(),
        st.sampled_from([1.0, 0.0, -1.0]),
    ),
    min_size=1,
    max_size=4,
)


@given(rows, st.floats(0.01, 2), st.floats(0, 2), st.floats(0.01, 5), st.sampled_from([0.0, 0.3, 1.0]))
def test_agrees_with_plain_loops(rows, share, bonus, tau, weight):
    advantages, values, mask, scored, verdicts = map(list, zip(*rows, strict=True))
    inputs = inputs_of(values, advantages, mask=mask, scored=scored, verdicts=verdicts)
    options = {"uniform_share": share, "evidence_bonus": bonus, "tau": tau, "negative_advantage_weight": weight}
    placed = placed_by("cepo_additive", inputs, **options)
    expected = loops.cepo_additive(advantages, values, mask, scored, verdicts, share, bonus, tau, weight)
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    # The sign follows the verdict.
    assert (placed.advantages * inputs.advantages.unsqueeze(-1) >= 0).all()
    assert (placed.advantages[(inputs.advantages == 0)] <= 0).all()
    most = (share * inputs.advantages.abs() + bonus).unsqueeze(-1)
    assert (placed.advantages.abs() <= most + 1e-9)[inputs.scored].all()
    # A page shows shifts of at most 1.
    assert (placed.shift.abs() <= 1 + 1e-9).all()


@given(rows, st.floats(0.01, 2))
def test_without_evidence_it_is_grpo(rows, share):
    """A rollout that is not scored keeps A; without a bonus, a scored one keeps its share of A."""
    advantages, values, mask, scored, verdicts = map(list, zip(*rows, strict=True))
    inputs = inputs_of(values, advantages, mask=mask, scored=scored, verdicts=verdicts)
    options = {"uniform_share": share, "evidence_bonus": 0.0, "negative_advantage_weight": 1.0}
    placed = placed_by("cepo_additive", inputs, **options)
    plain = placed_by("grpo", inputs).advantages
    assert_close(placed.advantages, torch.where(inputs.scored.unsqueeze(-1), share * plain, plain))


def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch):
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "cepo_additive")
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    placed, mask = batch["advantages"], batch["completion_mask"].bool()
    correct = batch["verdicts"] > 0
    assert (placed[correct] >= 0).all()
    assert (placed[~correct] <= 0).all()
    assert all(row[kept].unique().numel() > 1 for row, kept in zip(placed, mask, strict=True))


def test_a_real_step_with_a_group_without_correct_rollouts(tmp_path, task, loss_inputs, monkeypatch):
    def none_or_half(completions, **kwargs):
        return [0.0] * 4 + half_right(completions)[4:]

    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "cepo_additive", reward=none_or_half)
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    assert (batch["advantages"] != 0).any(dim=1).all()
    assert (batch["advantages"][batch["verdicts"] < 0] <= 0).all()


def test_groups_without_variance_are_learned_from(tmp_path, task, monkeypatch):
    """No rollout is correct. GRPO has no gradient; here the policy moves, the same with skipped rows or without."""
    wrong_answers(monkeypatch)
    dataset, model = task

    def trained(**options):
        options = {"max_steps": 1, "learning_rate": 1e-2, "optim": "sgd", **options}
        return weights_of(train(tmp_path, dataset, model, lambda completions, **_: [0.0] * len(completions), **options))

    untouched = trained(method="cepo_additive", learning_rate=0.0)
    plain = trained(method="grpo")
    assert all(plain[name].equal(untouched[name]) for name in untouched)
    skipped, whole = (trained(method="cepo_additive", skip_zero_advantage=skips) for skips in (True, False))
    assert any(not whole[name].equal(untouched[name]) for name in whole)
    assert_close(skipped, whole)
