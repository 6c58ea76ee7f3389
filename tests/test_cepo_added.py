"""Added evidence: a share of the advantage, and more where evidence speaks for it; never against the verdict."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo import MethodOptions
from cepo.credit import evidence
from cepo.methods import METHODS
from cepo.methods.cepo_added import Constants

from .reference import loops
from .test_credit import advantage_values
from .test_methods import check_a_real_step, inputs_of, placed_by
from .test_trainer import logged, loss_inputs, task

__all__ = ["loss_inputs", "task"]  # fixtures


def test_by_hand():
    """tanh(log(3) / 2) is 1/2, and so is that of evidence 0.05 log 3 at tau 0.1."""
    half = 0.05 * math.log(3)
    placed = placed_by("cepo_added", inputs_of([[half, 0.0, -half]] * 3, [2.0, -1.0, 0.0]))
    expected = torch.tensor([[0.4 + 0.25, 0.4, 0.4 - 0.25], [0.0, -0.2, -0.45], [0.0, 0.0, 0.0]]).double()
    assert_close(placed.advantages, expected)
    assert placed.at_bound.tolist() == [[False] * 3, [True, False, False], [False] * 3]
    assert placed_by("cepo_added", inputs_of([[half]], [1.0]), step=1000).advantages.item() == pytest.approx(0.45)


def test_from_probabilities():
    """P_T+ 0.6 against P_T- 0.2 is log 3 nats, eleven times tau: the whole bonus, or none."""
    found = evidence(torch.tensor([[0.6, 0.2]]).double().log(), torch.tensor([[0.2, 0.6]]).double().log())
    placed = placed_by("cepo_added", inputs_of(found.tolist(), [1.0]))
    assert_close(placed.advantages, torch.tensor([[0.7, 0.0]]).double(), atol=1e-6, rtol=0)


rows = st.lists(
    st.tuples(
        advantage_values,
        st.lists(st.floats(-9, 9), min_size=3, max_size=3),
        st.lists(st.booleans(), min_size=3, max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@given(rows, st.floats(0.01, 2), st.floats(0, 2), st.floats(0.01, 5))
def test_agrees_with_plain_loops(rows, prior, eta, tau):
    advantages, values, mask, read = map(list, zip(*rows, strict=True))
    inputs = inputs_of(values, advantages, mask=mask, scored=read)
    placed = placed_by("cepo_added", inputs, method_kwargs={"prior": prior, "eta": eta, "tau": tau})
    expected = torch.tensor(loops.cepo_added(advantages, values, mask, read, prior, eta, tau), dtype=torch.float64)
    assert_close(placed.advantages, expected)
    sign = inputs.advantages.sign().unsqueeze(-1)
    assert (placed.advantages * sign >= 0).all()  # never against the verdict
    most = (prior * inputs.advantages.abs() + eta).unsqueeze(-1)
    assert (placed.advantages.abs() <= most + 1e-9)[inputs.scored].all()
    # What a page paints lies within the scale.
    assert (placed.shift.abs() <= 1 + 1e-9).all()


@given(rows, st.floats(0.01, 2))
def test_without_evidence_it_is_grpo(rows, prior):
    """A rollout that was not read keeps its advantage; without eta one that was keeps its share."""
    advantages, values, mask, read = map(list, zip(*rows, strict=True))
    inputs = inputs_of(values, advantages, mask=mask, scored=read)
    placed = placed_by("cepo_added", inputs, method_kwargs={"prior": prior, "eta": 0.0})
    plain = placed_by("grpo", inputs).advantages
    assert_close(placed.advantages, torch.where(inputs.scored.unsqueeze(-1), prior * plain, plain))


@pytest.mark.parametrize(
    "constants", [{"prior": -0.1}, {"eta": -1.0}, {"tau": 0.0}, {"prior": 0.0, "eta": 0.0}], ids=str
)
def test_constants_that_mean_nothing_are_refused(constants):
    with pytest.raises(ValueError, match="prior|eta|tau"):
        Constants(**constants)


def test_no_schedule_is_read():
    with pytest.raises(ValueError, match="evidence_steps"):
        MethodOptions(method="cepo_added", evidence_steps=10)
    assert METHODS["cepo_added"].options.isdisjoint({"evidence_coefficient", "evidence_clip"})


def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch):
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "cepo_added")
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    placed, mask = batch["advantages"], batch["completion_mask"].bool()
    right = batch["verdicts"] > 0
    assert (placed[right] >= 0).all() and (placed[~right] <= 0).all()
    assert all(row[kept].unique().numel() > 1 for row, kept in zip(placed, mask, strict=True))
