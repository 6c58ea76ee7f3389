"""Ratios of sequences with token advantages: GSPO's token form, against plain loops in float64."""

import math

import pytest
import torch
from torch.testing import assert_close
from trl import GRPOTrainer

from cepo import CEPOConfig, CEPOTrainer
from tests.test_trainer import QUICK, half_right, letters, weights_of, wrong_answers

ROWS, TOKENS = 4, 5
LENGTHS = (5, 3, 1, 4)


@pytest.fixture
def trainer(tmp_path, text_figures, text_model_path, request):
    loss_type = getattr(request, "param", "grpo")
    options = {"importance_sampling_level": "sequence", "loss_type": loss_type, "method": "cepo", "epsilon_high": 0.28}
    args = CEPOConfig(output_dir=str(tmp_path), **(QUICK | options))
    made = CEPOTrainer(text_model_path, letters, args, text_figures)
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def batch_of(advantages, old=True):
    """Rollouts of different lengths, whose policy has moved since, unless `old` is False."""
    torch.manual_seed(0)
    mask = (torch.arange(TOKENS) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    batch = {
        "prompt_ids": torch.ones(ROWS, 2, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 2, dtype=torch.long),
        "completion_ids": torch.ones(ROWS, TOKENS, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }
    now = -2 + 0.4 * torch.randn(ROWS, TOKENS)
    if old:
        batch["old_per_token_logps"] = now + 0.3 * torch.randn(ROWS, TOKENS)
    return now, batch


def loss_and_gradient(trainer, monkeypatch, now, batch):
    """Of TRL's loss through our trainer, by the log-probs of the policy."""
    leaf = now.clone().requires_grad_(True)
    entropies = torch.zeros_like(leaf)
    monkeypatch.setattr(
        GRPOTrainer, "_get_per_token_logps_and_entropies", lambda self, *args, **kwargs: (leaf, entropies, None)
    )
    loss = super(CEPOTrainer, trainer)._compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), leaf.grad


def by_loops(now, batch, loss_type):
    """The loss and its gradient, token by token."""
    old, mask = batch.get("old_per_token_logps", now), batch["completion_mask"]
    loss, gradient = 0.0, [[0.0] * TOKENS for _ in range(ROWS)]
    for row in range(ROWS):
        length = int(mask[row].sum())
        ratio = math.exp(sum(float(now[row, t]) - float(old[row, t]) for t in range(length)) / length)
        clipped = min(max(ratio, 0.8), 1.28)
        for t in range(length):
            advantage = float(batch["advantages"][row, t])
            weight = {"grpo": 1 / length / ROWS, "luspo": 1 / ROWS, "dapo": 1 / sum(LENGTHS)}[loss_type]
            loss -= weight * min(ratio * advantage, clipped * advantage)
            if ratio * advantage <= clipped * advantage:
                gradient[row][t] = -weight * ratio * advantage
    return loss, torch.tensor(gradient)


@pytest.mark.parametrize("trainer", ["grpo", "luspo", "dapo"], indirect=True)
@pytest.mark.parametrize("old", [True, False])
def test_token_advantages_reach_their_own_tokens(trainer, monkeypatch, old):
    torch.manual_seed(1)
    now, batch = batch_of(torch.randn(ROWS, TOKENS), old)
    loss, gradient = loss_and_gradient(trainer, monkeypatch, now, batch)
    expected, expected_gradient = by_loops(now, batch, trainer.loss_type)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)
    assert trainer.importance_sampling_level == "sequence"


@pytest.mark.parametrize("trainer", ["grpo", "luspo", "dapo"], indirect=True)
def test_equal_token_advantages_are_gspo(trainer, monkeypatch):
    advantages = torch.tensor([1.0, -0.5, 0.7, -1.2])
    now, batch = batch_of(advantages)
    loss, gradient = loss_and_gradient(trainer, monkeypatch, now, batch)
    spread = {**batch, "advantages": advantages.unsqueeze(1).expand(ROWS, TOKENS)}
    loss_of_tokens, gradient_of_tokens = loss_and_gradient(trainer, monkeypatch, now, spread)
    if trainer.loss_type != "dapo":  # TRL's sum over tokens counts a sequence's one ratio once for each
        assert loss_of_tokens == pytest.approx(loss, rel=1e-5)
    assert_close(gradient_of_tokens, gradient, atol=1e-6, rtol=1e-5)


def test_credit_moves_the_policy_at_sequence_level(tmp_path, text_figures, text_model_path, monkeypatch):
    """It did not: teachers ran, metrics looked right, and training was GRPO's."""
    wrong_answers(monkeypatch)
    ends = {}
    for method in ("cepo", "grpo"):
        options = {"method": method, "importance_sampling_level": "sequence", "loss_type": "grpo", "optim": "sgd"}
        args = CEPOConfig(output_dir=str(tmp_path), **(QUICK | options | {"learning_rate": 0.1}))
        trainer = CEPOTrainer(text_model_path, half_right, args, text_figures)
        trainer.train()
        ends[method] = weights_of(trainer)
    distance = max((ends["cepo"][name] - ends["grpo"][name]).abs().max() for name in ends["cepo"])
    assert distance > 1e-5


def test_a_correction_that_would_change_is_refused(tmp_path):
    options = {"importance_sampling_level": "sequence", "beta": 0.1, "use_bias_correction_kl": True}
    with pytest.raises(ValueError, match="use_bias_correction_kl"):
        CEPOConfig(output_dir=str(tmp_path), **(QUICK | options))
    CEPOConfig(output_dir=str(tmp_path), **(QUICK | options | {"method": "grpo"}))
