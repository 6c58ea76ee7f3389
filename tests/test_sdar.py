"""SDAR: a gated bonus on the policy's tokens, independent of the reward."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo import CEPOConfig
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import logged, loss_inputs, task
from tests.support.values import advantage_values

__all__ = ["loss_inputs", "task"]  # fixtures


def test_by_hand():
    """d = log(3) / 5 has the gate 3/4; d = 0 has 1/2; an unscorable token and a rollout not scored get no bonus."""
    inputs = inputs_of(
        [[math.log(3) / 5, 0.0, 0.0]] * 3,
        [1.0, -0.5, 0.0],
        scored=[True, False, True],
        unscorable=[[False, False, True]] * 3,
    )
    found = placed_by("sdar", inputs, sdar_coefficient=0.4)
    expected = [[1.3, 1.2, 1.0], [-0.5] * 3, [0.3, 0.2, 0.0]]
    assert_close(found.advantages, torch.tensor(expected, dtype=torch.float64))
    assert found.rollout_advantages.tolist() == [1.0, -0.5, 0.0]


rows = st.lists(st.tuples(advantage_values, st.lists(st.floats(-3, 3), min_size=4, max_size=4)), min_size=1, max_size=4)


@given(rows, st.floats(0, 2), st.floats(0.1, 9))
def test_the_gradient_is_that_of_the_papers_loss(rows, coefficient, scale):
    """On-policy, the gradient of TRL's loss with A_t is that of GRPO's loss plus SDAR's."""
    advantages, gaps = map(list, zip(*rows, strict=True))
    inputs = inputs_of(gaps, advantages)
    found = placed_by("sdar", inputs, sdar_coefficient=coefficient, gate_scale=scale)
    student = torch.zeros(inputs.evidence.shape, dtype=torch.float64, requires_grad=True)
    teacher = inputs.evidence  # log P_T+ where log P_S is 0
    ratio = (student - student.detach()).exp()
    (ours,) = torch.autograd.grad(-(ratio * found.advantages).mean(), student, retain_graph=True)
    grpo = -(ratio * inputs.advantages.unsqueeze(-1)).mean()
    gate = (scale * (teacher - student.detach())).sigmoid()
    sdar = coefficient * (gate * (teacher - student)).mean()
    (papers,) = torch.autograd.grad(grpo + sdar, student)
    assert_close(ours, papers)


def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch):
    options = {"sdar_coefficient": 0.5}
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "sdar", **options)
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    mask = batch["completion_mask"].bool()
    expected = 0.5 * (5 * batch["evidence"]).sigmoid()
    for row, kept in enumerate(mask):
        bonus = batch["advantages"][row][kept] - expected[row][kept]
        assert_close(bonus, bonus[:1].expand(len(bonus)), atol=1e-5, rtol=1e-5)


def test_zero_variance_groups_are_trained_on(tmp_path, task, loss_inputs, monkeypatch):
    def zero(completions, **kwargs):
        return [0.0] * len(completions)

    _, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "sdar", reward=zero)
    assert (batch["advantages"] > 0).any(dim=1).all()


def test_a_loss_that_is_no_mean_over_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mean over all tokens, which loss_type='grpo' is not"):
        CEPOConfig(output_dir=str(tmp_path), method="sdar", loss_type="grpo", bf16=False)
