"""Metrics of the credit, by hand."""

import math

import pytest
import torch

from cepo.methods import CreditInputs, method_options
from cepo.methods.stages import contrast
from cepo.trainer.metrics import credit_metrics, credit_sums


def sums_of(delta, advantages, mask=None, clip=0.5, verdicts=None, unscorable=None):
    """Of rollouts that were all read, placed by CEPO."""
    mask = torch.ones_like(delta, dtype=torch.bool) if mask is None else mask
    verdicts = advantages if verdicts is None else verdicts
    unscorable = torch.zeros_like(mask) if unscorable is None else unscorable
    inputs = CreditInputs(advantages, delta, mask, torch.ones(len(delta), dtype=torch.bool), verdicts, unscorable)
    options = method_options("cepo", evidence_clip=clip)
    return credit_sums(inputs, options.method_spec.token_advantages(inputs, options, 0))


def test_by_hand():
    """One right rollout with evidence 1, -0.2, 0 and one wrong one with -2, 0.1 and padding."""
    delta = torch.tensor([[1.0, -0.2, 0.0], [-2.0, 0.1, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    metrics = credit_metrics(sums_of(delta, torch.tensor([0.5, -0.5]), mask))
    assert metrics["evidence/correct_mean"] == pytest.approx(0.8 / 3)
    assert metrics["evidence/wrong_mean"] == pytest.approx(-0.95)
    assert metrics["evidence/correct_std"] == pytest.approx(torch.tensor([1.0, -0.2, 0.0]).std(correction=0).item())
    assert metrics["evidence/wrong_std"] == pytest.approx(1.05)
    assert metrics["evidence/wrong_sign"] == pytest.approx(0.3 / 3.3)  # -0.2 on the right one, 0.1 on the wrong one
    assert metrics["credit/at_bound"] == pytest.approx(2 / 5)  # e^1 > 1.5 and e^2 > 1.5
    assert metrics["credit/moved"] == pytest.approx(4 / 5)
    assert metrics["evidence/unscorable"] == 0.0


def test_unscorable_tokens_are_counted():
    positive = torch.tensor([[-1.0, -math.inf], [math.nan, -1.0]])
    mask = torch.tensor([[True, True], [True, False]])
    evidence = contrast(torch.stack([positive, torch.zeros(2, 2)]), torch.ones(2, 2, dtype=torch.bool))
    sums = sums_of(evidence.values, torch.ones(2), mask, unscorable=evidence.unscorable)
    assert credit_metrics(sums)["evidence/unscorable"] == pytest.approx(2 / 3)


def test_sums_of_processes_add_up():
    """Metrics of the added sums are those of all rollouts together."""
    torch.manual_seed(0)
    delta, advantages = torch.randn(6, 4), torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])
    together = credit_metrics(sums_of(delta, advantages))
    parts = [sums_of(delta[:2], advantages[:2]), sums_of(delta[2:], advantages[2:])]
    added = {key: sum(part[key] for part in parts) for key in parts[0]}
    assert credit_metrics(added) == pytest.approx(together, nan_ok=True)


def test_nothing_to_measure_is_nan():
    metrics = credit_metrics(sums_of(torch.zeros(0, 3), torch.zeros(0)))
    assert all(math.isnan(value) for value in metrics.values())


def test_right_and_wrong_are_the_verifiers_word_not_the_sign_of_the_advantage():
    """A wrong rollout that is better than its group, for its format say, has a positive advantage."""
    sums = sums_of(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, -1.0]), verdicts=torch.tensor([-1.0, 0.0]))
    metrics = credit_metrics(sums)
    assert metrics["evidence/wrong_mean"] == 1.0
    assert math.isnan(metrics["evidence/correct_mean"])


def test_rollouts_that_were_not_read_do_not_count():
    delta, advantages = torch.tensor([[1.0, -0.2], [0.0, 0.0]]), torch.tensor([1.0, -1.0])
    mask, verdicts = torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, -1.0])
    inputs = CreditInputs(advantages, delta, mask, torch.tensor([True, False]), verdicts, ~mask)
    options = method_options("cepo")
    sums = credit_sums(inputs, options.method_spec.token_advantages(inputs, options, 0))
    assert (sums["tokens"], sums["at_bound"], sums["tokens_wrong"]) == (2, 1, 0)


def test_evidence_that_has_no_side_has_no_wrong_sign():
    sums = sums_of(torch.tensor([[1.0, -1.0]]), torch.tensor([1.0]))
    assert "evidence/wrong_sign" in credit_metrics(sums)
    assert "evidence/wrong_sign" not in credit_metrics(sums, signed=False)
