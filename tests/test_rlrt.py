"""RLRT: RLSD reversed, on correct rollouts alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo import method_options
from cepo.methods import METHODS, STUDENT
from cepo.references.groups import References
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import half_right, logged, loss_inputs, task
from tests.support.values import advantage_values

from .reference import loops

__all__ = ["loss_inputs", "task"]  # fixtures


def test_by_hand():
    """With the hint a token is 4/3 as likely: its weight is 3/4 on a correct rollout, 1 on an incorrect one."""
    logps = torch.tensor([[[math.log(0.4)]], [[math.log(0.3)]]], dtype=torch.float64)
    found = METHODS["rlrt"].evidence(logps, torch.ones(2, 1, dtype=torch.bool))
    assert_close(found.values, torch.tensor([[math.log(3 / 4)]], dtype=torch.float64))
    assert_close(found.positive, logps[1])  # the student takes the place of the positive teacher
    inputs = inputs_of([[found.values.item()]] * 3, [2.0, -1.0, -1.0], verdicts=[1.0, -1.0, 1.0])
    placed = placed_by("rlrt", inputs)
    # lambda 0.5. The last rollout is correct and below its group's mean, as with a penalty for its format.
    assert_close(placed.advantages[:, 0], torch.tensor([2 * (0.5 + 0.375), -1.0, -(0.5 + 0.5 * 4 / 3)]).double())
    assert placed_by("rlrt", inputs, step=1000).advantages.equal(placed.advantages)  # no schedule


rows = st.lists(
    st.tuples(
        advantage_values,
        st.lists(st.floats(-9, 0), min_size=3, max_size=3),
        st.lists(st.floats(-9, 0), min_size=3, max_size=3),
        st.sampled_from([1.0, -1.0, 0.0]),
        st.lists(st.booleans(), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(rows, st.floats(0, 1), st.floats(0.05, 0.95))
def test_agrees_with_plain_loops(rows, coefficient, clip):
    advantages, hinted, student, verdicts, mask = map(list, zip(*rows, strict=True))
    logps = torch.tensor([hinted, student], dtype=torch.float64)
    found = METHODS["rlrt"].evidence(logps, torch.ones(2, len(rows), dtype=torch.bool))
    inputs = inputs_of(found.values.tolist(), advantages, mask=mask, verdicts=verdicts)
    placed = placed_by("rlrt", inputs, evidence_coefficient=coefficient, evidence_clip=clip)
    expected = loops.rlrt(advantages, hinted, student, verdicts, mask, coefficient, clip)
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    # On correct rollouts it is RLSD with reversed evidence.
    turned = placed_by("rlsd", inputs_of((-found.values).tolist(), [-a for a in advantages], mask=mask),
                       evidence_coefficient=coefficient, evidence_clip=clip)  # fmt: skip
    correct = torch.tensor(verdicts) > 0
    assert_close(placed.advantages[correct], -turned.advantages[correct])


def test_correct_rollouts_with_a_correct_sibling_are_scored():
    options = method_options("rlrt")
    advantages, verdicts = torch.tensor([1.0, -1.0, 0.0, -0.2]), torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert METHODS["rlrt"].rollout_filter(advantages, verdicts, options).tolist() == [True, False, False, True]
    assert METHODS["rlrt"].contexts(References("a rollout", ()), options) == ["a rollout", STUDENT]
    assert METHODS["rlrt"].contexts(References("7", (), "no_correct_rollout"), options) == []


def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch):
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "rlrt")
    assert logged(trainer, "cepo/rows_scored") == [0.5]  # the correct half
    incorrect = batch["verdicts"] < 0
    mask = batch["completion_mask"].bool()
    for row, kept in zip(batch["advantages"][incorrect], mask[incorrect], strict=True):
        assert row[kept].unique().numel() == 1
    for row, kept in zip(batch["advantages"][~incorrect], mask[~incorrect], strict=True):
        assert row[kept].unique().numel() > 1


def test_the_only_correct_rollout_keeps_its_advantage(tmp_path, task, loss_inputs, monkeypatch):
    def one_or_half(completions, **kwargs):
        return [1.0, 0.0, 0.0, 0.0, *half_right(completions)[4:]]

    trainer, _ = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "rlrt", reward=one_or_half)
    assert logged(trainer, "cepo/rows_scored") == [0.25]
    assert logged(trainer, "cepo/fallback/no_correct_rollout") == [pytest.approx(1 / 3)]
