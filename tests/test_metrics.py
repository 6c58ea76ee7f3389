"""Metrics of evidence and token advantages, by hand."""

import math

import pytest
import torch

from cepo.methods import CreditInputs, method_options
from cepo.methods.stages import contrast
from cepo.trainer.metrics import credit_metrics, credit_sums


def sums_of(delta, advantages, mask=None, clip=0.5, verdicts=None, unscorable=None):
    """Sums over scored rollouts, with CEPO's token advantages."""
    mask = torch.ones_like(delta, dtype=torch.bool) if mask is None else mask
    verdicts = advantages if verdicts is None else verdicts
    unscorable = torch.zeros_like(mask) if unscorable is None else unscorable
    inputs = CreditInputs(advantages, delta, mask, torch.ones(len(delta), dtype=torch.bool), verdicts, unscorable)
    options = method_options("cepo", evidence_clip=clip)
    return credit_sums(inputs, options.method_spec.token_advantages(inputs, options, 0))


def test_by_hand():
    """A correct rollout with evidence 1, -0.2, 0, and an incorrect one with -2, 0.1 and padding."""
    delta = torch.tensor([[1.0, -0.2, 0.0], [-2.0, 0.1, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    metrics = credit_metrics(sums_of(delta, torch.tensor([0.5, -0.5]), mask))
    assert metrics["evidence/correct_mean"] == pytest.approx(0.8 / 3)
    assert metrics["evidence/incorrect_mean"] == pytest.approx(-0.95)
    assert metrics["evidence/correct_std"] == pytest.approx(torch.tensor([1.0, -0.2, 0.0]).std(correction=0).item())
    assert metrics["evidence/incorrect_std"] == pytest.approx(1.05)
    assert metrics["evidence/sign_disagreement"] == pytest.approx(0.3 / 3.3)  # -0.2 and 0.1
    assert metrics["credit/clipped"] == pytest.approx(2 / 5)  # e^1 > 1.5 and e^2 > 1.5
    assert metrics["credit/changed"] == pytest.approx(4 / 5)
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


def test_no_tokens_give_nan():
    metrics = credit_metrics(sums_of(torch.zeros(0, 3), torch.zeros(0)))
    assert all(math.isnan(value) for value in metrics.values())


def test_verdicts_decide_correctness():
    """An incorrect rollout may have a positive advantage, as for its format."""
    sums = sums_of(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, -1.0]), verdicts=torch.tensor([-1.0, 0.0]))
    metrics = credit_metrics(sums)
    assert metrics["evidence/incorrect_mean"] == 1.0
    assert math.isnan(metrics["evidence/correct_mean"])


def test_unscored_rollouts_do_not_count():
    delta, advantages = torch.tensor([[1.0, -0.2], [0.0, 0.0]]), torch.tensor([1.0, -1.0])
    mask, verdicts = torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, -1.0])
    inputs = CreditInputs(advantages, delta, mask, torch.tensor([True, False]), verdicts, ~mask)
    options = method_options("cepo")
    sums = credit_sums(inputs, options.method_spec.token_advantages(inputs, options, 0))
    assert (sums["tokens"], sums["clipped"], sums["tokens_incorrect"]) == (2, 1, 0)


def test_unsigned_evidence_has_no_sign_disagreement():
    sums = sums_of(torch.tensor([[1.0, -1.0]]), torch.tensor([1.0]))
    assert "evidence/sign_disagreement" in credit_metrics(sums)
    assert "evidence/sign_disagreement" not in credit_metrics(sums, signed=False)
