"""PBSD: evidence of whole turns."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo.methods.contrib.pbsd import sums_of_turns
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import logged, loss_inputs, task
from tests.support.values import advantage_values

from .reference import loops

__all__ = ["loss_inputs", "task"]  # fixtures


def test_two_turns_by_hand():
    """With a tool result in between. Turn sums 0.3 and -2: tanh 0.2913, and -0.964, clipped to -0.5."""
    evidence = [[0.1, 0.2, 9.0, -1.5, -0.5]] * 2
    mask = [[True, True, False, True, True]] * 2
    placed = placed_by("pbsd", inputs_of(evidence, [2.0, -1.0], mask=mask))
    up, down = 1 + math.tanh(0.3), 1 - math.tanh(0.3)
    expected = [[2 * up, 2 * up, 0.0, 1.0, 1.0], [-down, -down, 0.0, -1.5, -1.5]]
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    assert placed.at_bound.tolist() == [[False, False, False, True, True]] * 2
    assert placed.scale.tolist() == [1.0, 0.5]


def test_a_rollout_without_tools_is_one_turn():
    sums = sums_of_turns(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, True]]))
    assert sums.tolist() == [[7.0] * 3]
    assert sums_of_turns(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]]
    tokens = placed_by("pbsd", inputs_of([[0.1, -0.1]], [1.0]), evidence_unit="token")
    assert_close(tokens.advantages, torch.tensor([[1 + math.tanh(0.1), 1 - math.tanh(0.1)]], dtype=torch.float64))


rows = st.lists(
    st.tuples(
        advantage_values,
        st.lists(st.floats(-3, 3), min_size=6, max_size=6),
        st.lists(st.booleans(), min_size=6, max_size=6),
    ),
    min_size=1,
    max_size=4,
)


@given(rows, st.floats(0.1, 5), st.floats(0.05, 0.95), st.sampled_from(["turn", "token"]))
def test_agrees_with_plain_loops_and_keeps_the_sign(rows, scale, bound, unit):
    advantages, evidence, mask = map(list, zip(*rows, strict=True))
    inputs = inputs_of(evidence, advantages, mask=mask)
    placed = placed_by("pbsd", inputs, evidence_scale=scale, weight_bound=bound, evidence_unit=unit)
    expected = loops.pbsd(advantages, evidence, mask, scale, bound, unit)
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    signs = inputs.advantages.sign().unsqueeze(-1).expand_as(placed.advantages)
    assert torch.equal(placed.advantages.sign()[inputs.mask], signs[inputs.mask])


def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch):
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "pbsd")
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    for row, kept in zip(batch["advantages"], batch["completion_mask"].bool(), strict=True):
        assert row[kept].unique().numel() == 1  # no tools, so one turn
    assert batch["advantages"].abs().unique().numel() > 3
