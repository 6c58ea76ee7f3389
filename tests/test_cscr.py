"""CSCR: tokens that an asserted outcome shifts get less credit; a rollout's mean is kept."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo import method_options
from cepo.methods import METHODS, STUDENT
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import logged, loss_inputs, task
from tests.support.values import advantage_values

from .reference import loops

__all__ = ["loss_inputs", "task"]  # fixtures


def test_by_hand():
    """Shifts of 0, ln 2 and 3 nats with rate 1: raw weights 1, 1/2 and the floor 0.1, mean 0.5333."""
    right = torch.tensor([[-1.0, -1.0 + math.log(2), -1.0]], dtype=torch.float64)
    wrong = torch.tensor([[-1.0, -1.0 - math.log(1.5), -4.0]], dtype=torch.float64)
    student = torch.full((1, 3), -1.0, dtype=torch.float64)
    logps = torch.stack([right, wrong, student])
    found = METHODS["cscr"].evidence(logps, torch.ones(3, 1, dtype=torch.bool))
    assert_close(found.values, torch.tensor([[0.0, math.log(2), 3.0]], dtype=torch.float64))
    placed = placed_by("cscr", inputs_of(found.values.tolist(), [-2.0]))
    mean = 1.6 / 3
    assert_close(placed.advantages, torch.tensor([[-2 / mean, -1 / mean, -0.2 / mean]], dtype=torch.float64))
    assert placed.at_bound.tolist() == [[False, False, True]]
    assert placed.advantages.mean().item() == pytest.approx(-2.0)


def test_unscored_rollouts_keep_their_advantage():
    found = METHODS["cscr"].evidence(torch.full((3, 1, 2), math.nan), torch.zeros(3, 1, dtype=torch.bool))
    assert not found.scored.any()
    assert not found.unscorable.any()
    absent = METHODS["cscr"].evidence(torch.zeros(2, 1, 2), torch.zeros(2, 1, dtype=torch.bool))
    assert absent.values.tolist() == [[0.0, 0.0]]
    placed = placed_by("cscr", inputs_of([[0.0, 5.0]], [1.5], scored=[False]))
    assert placed.advantages.tolist() == [[1.5, 1.5]]


logps = st.lists(st.floats(-9, 0), min_size=4, max_size=4)
rows = st.lists(
    st.tuples(advantage_values, logps, logps, logps, st.lists(st.booleans(), min_size=4, max_size=4)),
    min_size=1,
    max_size=3,
)


@given(rows, st.floats(0, 5), st.floats(0, 1), st.floats(0.01, 1))
def test_agrees_with_plain_loops_and_keeps_the_sum(rows, rate, threshold, floor):
    advantages, right, wrong, student, mask = map(list, zip(*rows, strict=True))
    logps = torch.tensor([right, wrong, student], dtype=torch.float64)
    found = METHODS["cscr"].evidence(logps, torch.ones(3, len(rows), dtype=torch.bool))
    inputs = inputs_of(found.values.tolist(), advantages, mask=mask)
    options = {"damping_rate": rate, "damping_threshold": threshold, "damping_floor": floor}
    placed = placed_by("cscr", inputs, **options)
    expected = loops.cscr(advantages, right, wrong, student, mask, rate, threshold, floor)
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    counts = inputs.mask.sum(dim=1)
    assert_close(placed.advantages.sum(dim=1), inputs.advantages * counts)
    assert (placed.advantages * inputs.advantages.unsqueeze(-1) >= 0).all()


def test_both_outcomes_are_asserted_of_every_rollout():
    options = method_options("cscr")
    first, second = METHODS["cscr"].references([None, None], "7", options, None)
    assert first == second
    right, wrong, student = METHODS["cscr"].contexts(first, options)
    assert (right.replace("correct", "wrong"), student) == (wrong, STUDENT)
    assert options.hint_template == "\n\n{answer}"


def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch):
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "cscr")
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    mask = batch["completion_mask"].bool()
    # Weights have mean 1: the mean of a rollout's token advantages is A, and |A| is the same for all rollouts here.
    means = [row[kept].mean().abs() for row, kept in zip(batch["advantages"], mask, strict=True)]
    assert_close(torch.stack(means), means[0].expand(len(means)), atol=1e-5, rtol=1e-4)


def test_unscorable_tokens_keep_their_advantage():
    unscorable = [[True, False, False]]
    placed = placed_by("cscr", inputs_of([[0.0, 5.0, 5.0]], [2.0], unscorable=unscorable))
    assert_close(placed.advantages, torch.full((1, 3), 2.0, dtype=torch.float64))
