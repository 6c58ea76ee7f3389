"""Rollouts that another engine sampled: its log-probs are off by known amounts, and TRL's correction reaches each loss.

The engine is a double in vLLM's place: `use_vllm` is on, `_generate_single_turn` answers, and says of each token that
it was likelier or less likely than the policy holds it to be.
"""

import pytest
import torch
from trl import GRPOTrainer

from cepo import CEPOTrainer
from tests.support.training import QUICK, half_right, logged, make, wrong_answers

from .test_distillation import distributions, forward_kl, lessons, own_prompt, told_prompt

__all__ = ["lessons"]  # a fixture

MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class Served(CEPOTrainer):
    """Samples in process and says that an engine did, whose log-probs are off."""

    def off_by(self, row, place):
        """How much less likely the engine holds a token to be than the policy does [nats]."""
        return 0.15 * ((row + place) % 3 - 0.5) * (1.0 if row % 2 else -0.4) + (2.0 if row == 1 else 0.0)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self.use_vllm = False
        completions, _ = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.use_vllm = True
        logps = []
        for row, (prompt, completion) in enumerate(zip(prompt_ids, completions, strict=True)):
            batch = {"completion_ids": torch.tensor([completion]), "completion_mask": torch.ones(1, len(completion))}
            held = distributions(self.model, batch, torch.tensor(prompt), 0)
            own = held.gather(1, torch.tensor(completion).unsqueeze(-1))[:, 0].tolist()
            logps.append([value - self.off_by(row, place) for place, value in enumerate(own)])
        return completions, logps


class Noted(Served):
    """Notes what the loss is given and what comes out, in the order of the rollouts."""

    def __init__(self, *args, **kwargs):
        self.noted = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return {**output, "row": torch.arange(len(inputs))}

    def _compute_loss(self, model, inputs):
        placed = self._place(inputs)
        loss = super()._compute_loss(model, inputs)
        self.noted.append((dict(placed), loss.detach()))
        return loss


def serve(tmp_path, monkeypatch, dataset, model, **options):
    wrong_answers(monkeypatch)
    trainer = make(tmp_path, dataset, model, half_right, Noted, max_steps=1, **options)
    trainer.use_vllm = True
    trainer._last_loaded_step = 0
    trainer.train()
    return trainer


@pytest.fixture(autouse=True)
def as_ours(monkeypatch):
    """`make` takes CEPO's options for CEPO's trainer alone."""
    monkeypatch.setattr("tests.test_trainer.CEPOTrainer", Noted)


def ratio(trainer, row, length, mode):
    """TRL's, as its documentation has it: policy over engine, of tokens or of the sequence, cut or masked at 3."""
    off = torch.tensor([trainer.off_by(row, place) for place in range(length)])
    value = off.exp() if mode.startswith("token") else off.sum().exp().expand(length)
    return value.clamp(max=3.0) if mode.endswith("truncate") else value.where(value <= 3.0, 0.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["cepo", "rlcsd", "grpo"])
def test_token_advantages_are_corrected(tmp_path, monkeypatch, text_figures, text_model_path, mode, method):
    """The loss of the first step is minus the mean of ratio times token advantage: the policy's own ratio is 1."""
    options = {"method": method, "vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 3.0}
    teacher = {} if method == "grpo" else {"teacher": "policy"}
    trainer = serve(tmp_path, monkeypatch, text_figures, text_model_path, **options, **teacher)
    ((batch, loss),) = trainer.noted
    total, tokens, moved = 0.0, 0, 0
    for index, row in enumerate(batch["row"].tolist()):
        length = int(batch["completion_mask"][index].sum())
        advantages = batch["advantages"][index]
        advantages = advantages[:length] if advantages.dim() else advantages.expand(length)
        own = ratio(trainer, row, length, mode)
        total -= (own * advantages).sum().item()
        moved += int((own != 1).any())
        tokens += length
    assert moved > 4
    assert loss.item() == pytest.approx(total / tokens, rel=1e-4)


def test_teachers_read_what_the_engine_sampled(tmp_path, monkeypatch, text_figures, text_model_path):
    """Evidence is of the policy's weights: what the engine says of its tokens has no part in it."""
    served = serve(tmp_path / "a", monkeypatch, text_figures, text_model_path, method="cepo")
    monkeypatch.setattr(Served, "off_by", lambda self, row, place: 0.0)
    plain = serve(tmp_path / "b", monkeypatch, text_figures, text_model_path, method="cepo")
    ((one, _),), ((other, _),) = served.noted, plain.noted
    assert torch.equal(one["completion_ids"], other["completion_ids"])
    assert one["evidence"].abs().max() > 0
    torch.testing.assert_close(one["evidence"], other["evidence"])
    assert logged(served, "cepo/rows_scored") == [1.0]


@pytest.mark.parametrize("method", ["opsd", "sdpo"])
@pytest.mark.parametrize("mode", MODES)
def test_distillation_is_corrected(tmp_path, monkeypatch, text_figures, text_model_path, lessons, method, mode):
    """Each token's divergence counts by its ratio."""
    options = {"method": method, "vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 3.0}
    whole = {"teacher": "policy", "divergence": "full", "divergence_beta": 0.0}
    trainer = serve(tmp_path, monkeypatch, text_figures, text_model_path, **options, **whole)
    ((batch, policy, loss),) = lessons
    values, ratios = [], []
    for index, row in enumerate(batch["row"].tolist()):
        if not batch["teacher_mask"][index].any():
            continue
        told, own = told_prompt(batch, index), own_prompt(batch, index)
        values.append(forward_kl(distributions(policy, batch, told, index), distributions(policy, batch, own, index)))
        ratios.append(ratio(trainer, row, len(values[-1]), mode))
    weighted = (torch.cat(values) * torch.cat(ratios)).mean().item()
    assert loss.item() == pytest.approx(weighted, rel=2e-3)
    assert weighted != pytest.approx(torch.cat(values).mean().item(), rel=1e-2)


def test_the_double_is_where_trl_asks_its_engine():
    """Were the seam another, the tests above would test nothing."""
    assert "_generate_single_turn" in vars(GRPOTrainer)
    assert "use_vllm" not in QUICK
