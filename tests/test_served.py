"""Rollouts from vLLM whose log-probs differ by known amounts: TRL's correction reaches each loss.

A double stands in for vLLM: with `use_vllm`, `_generate_single_turn` returns log-probs that differ from the policy's.
"""

import pytest
import torch
from trl import GRPOTrainer

from cepo import CEPOTrainer
from tests.support.distillation import distributions, forward_kl, hinted_prompt, student_prompt
from tests.support.training import QUICK, half_right, logged, make, wrong_answers

MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class Served(CEPOTrainer):
    """Samples in this process, with log-probs of an engine that differ by known amounts."""

    def off_by(self, row, place):
        """Difference of the policy's log-prob to the engine's [nats]."""
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
    """Records inputs and value of the loss, in the order of the rollouts."""

    def __init__(self, *args, **kwargs):
        self.noted = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return {**output, "row": torch.arange(len(inputs))}

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.noted.append((dict(self._with_token_advantages(inputs)), loss.detach()))
        return loss


def serve(tmp_path, monkeypatch, dataset, model, **options):
    wrong_answers(monkeypatch)
    trainer = make(tmp_path, dataset, model, half_right, Noted, max_steps=1, **options)
    trainer.use_vllm = True
    trainer._last_loaded_step = 0
    trainer.train()
    return trainer


@pytest.fixture(autouse=True)
def options_of_cepo(monkeypatch):
    """Let `make` pass CEPO's options to this trainer."""
    monkeypatch.setattr("tests.support.training.CEPOTrainer", Noted)


def ratio(trainer, row, length, mode):
    """TRL's documented ratio, policy over engine, of tokens or of the sequence, clipped or masked at 3."""
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


def test_evidence_does_not_depend_on_the_engine(tmp_path, monkeypatch, text_figures, text_model_path):
    """Teachers score with the policy's weights; log-probs of the engine have no part in it."""
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
    """The ratio weights each token's divergence."""
    options = {"method": method, "vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 3.0}
    whole = {"teacher": "policy", "divergence": "full", "divergence_beta": 0.0}
    trainer = serve(tmp_path, monkeypatch, text_figures, text_model_path, **options, **whole)
    ((batch, policy, loss),) = lessons
    values, ratios = [], []
    for index, row in enumerate(batch["row"].tolist()):
        if not batch["teacher_mask"][index].any():
            continue
        hinted, own = hinted_prompt(batch, index), student_prompt(batch, index)
        values.append(forward_kl(distributions(policy, batch, hinted, index), distributions(policy, batch, own, index)))
        ratios.append(ratio(trainer, row, len(values[-1]), mode))
    weighted = (torch.cat(values) * torch.cat(ratios)).mean().item()
    assert loss.item() == pytest.approx(weighted, rel=2e-3)
    assert weighted != pytest.approx(torch.cat(values).mean().item(), rel=1e-2)


def test_trl_calls_the_hook_that_is_replaced():
    assert "_generate_single_turn" in vars(GRPOTrainer)
    assert "use_vllm" not in QUICK
