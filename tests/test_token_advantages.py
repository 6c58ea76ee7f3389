"""log P_S is known before the loss, from TRL or from a scoring pass, and each step runs the fewest tokens."""

import math

import pytest
import torch
from torch.testing import assert_close
from trl import GRPOTrainer

from cepo import CEPOConfig, CEPOTrainer, policy_path
from cepo.scoring.forward import Scorer
from tests.support.training import QUICK, half_right, logged, weights_of

METHODS = {
    "rlsd": {"method": "rlsd"},
    "cscr": {"method": "cscr"},
    "pbsd": {"method": "pbsd"},
    "rlrt": {"method": "rlrt"},
    "opsd": {"method": "opsd", "divergence": "sampled"},
    "sdpo": {"method": "sdpo", "divergence": "sampled"},
    "cepo without r-": {"method": "cepo"},  # truncated completions have no answer
    "lagging teacher": {"method": "rlsd", "teacher": "ema", "teacher_ema_decay": 0.5},
    "down-weighted negatives": {"method": "rlsd", "negative_advantage_weight": 0.3},
}
STEPS = {
    **{name: {"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "two generations a step": {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 4,
    },
    "twice in a step": {"num_iterations": 2, "steps_per_generation": 1, "gradient_accumulation_steps": 2},
    "all rows": {"skip_zero_advantage": False},
    "kl": {"beta": 0.2},
    "high entropy": {"top_entropy_quantile": 0.4},
    "checkpointing": {"gradient_checkpointing": True},
    "whole rows": {"shared_prompt_update": "never"},
}
SITUATIONS = {**METHODS, **{name: {"method": "rlsd", **options} for name, options in STEPS.items()}}


def some_correct(completions, **kwargs):
    """One group in two has variance."""
    return [float(place % 2) if place // 4 % 2 else 1.0 for place in range(len(completions))]


def run(tmp_path, task, **options):
    dataset, model = task
    args = CEPOConfig(output_dir=str(tmp_path), **(QUICK | {"optim": "sgd", "learning_rate": 0.5} | options))
    torch.manual_seed(0)
    trainer = CEPOTrainer(model, some_correct, args, dataset)
    trainer.train()
    return trainer


@pytest.fixture
def asked(monkeypatch):
    """Whether each scoring request had a hint."""
    seen, log_probs = [], Scorer.log_probs

    def noted(self, prompts, requests, *, max_tokens):
        seen.extend(request.context != prompts[request.prompt].ids for request in requests)
        return log_probs(self, prompts, requests, max_tokens=max_tokens)

    monkeypatch.setattr(Scorer, "log_probs", noted)
    return seen


@pytest.mark.parametrize("name", SITUATIONS)
def test_student_log_probs_are_known_before_the_loss(tmp_path, task, name, asked, monkeypatch):
    """A scoring pass is omitted if TRL has them, and the step is the same."""
    options = SITUATIONS[name]
    scored = run(tmp_path, task, **options)
    assert not all(asked)
    with_hint = sum(asked)
    asked.clear()
    kept = GRPOTrainer._generate_and_score_completions

    def with_log_probs(self, inputs):
        batch = kept(self, inputs)
        if self.model.training and "old_per_token_logps" not in batch:
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            fields = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
            images = {name: batch[name] for name in fields if name in batch}
            with torch.no_grad():
                batch["old_per_token_logps"], *_ = self._get_per_token_logps_and_entropies(
                    self.model, ids, mask, batch["completion_ids"].shape[1], **images
                )
        return batch

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", with_log_probs)
    known = run(tmp_path, task, **options)
    assert all(asked)
    assert len(asked) == with_hint
    names = [key for key in known.state.log_history[0] if key.startswith("cepo/") and "seconds" not in key]
    assert {"cepo/evidence/incorrect_mean", "cepo/credit/changed", "cepo/rows_scored"} <= set(names)
    for key in (*names, "loss", "grad_norm"):
        found, wanted = ([math.nan if v is None else v for v in logged(one, key)] for one in (scored, known))
        assert found == pytest.approx(wanted, rel=2e-3, abs=2e-5, nan_ok=True), key
    for weight_name, weight in weights_of(scored).items():
        assert_close(weight, weights_of(known)[weight_name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({"per_device_train_batch_size": 4, "steps_per_generation": 2, "gradient_accumulation_steps": 1}, False),
        ({"num_iterations": 2}, False),
        ({}, True),
    ],
)
def test_trls_log_probs_are_used_with_several_steps_per_generation(tmp_path, task, options, scores, asked):
    """TRL has computed them for its ratio; with dropout they are not those of eval mode."""
    dataset, model = task
    args = CEPOConfig(output_dir=str(tmp_path), **(QUICK | {"method": "rlsd"} | options))
    trainer = CEPOTrainer(model, half_right, args, dataset)
    if scores:
        trainer.model.add_module("dropout", torch.nn.Dropout(0.1))
    trainer.train()
    assert all(asked) is not scores
    assert any(asked)


# The tokens and images that a step runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "prompts", "contexts"),
    [
        ({"method": "grpo"}, 2, 0),  # sampling and update
        ({"method": "cepo"}, 3, 2),
        ({"method": "rlsd"}, 3, 2),
        ({"method": "cscr"}, 3, 3),
        ({"method": "rlsd", "gradient_checkpointing": True}, 3, 2),
    ],
)
def test_no_token_runs_twice(tmp_path, figures, monkeypatch, method, prompts, contexts):
    """In a step: each image once, each prompt once per scorer, each rollout once per hinted context."""
    ran, images, asked = [], [], []
    log_probs = Scorer.log_probs

    def noted(self, of, requests, *, max_tokens):
        asked.append(requests)
        return log_probs(self, of, requests, max_tokens=max_tokens)

    monkeypatch.setattr(Scorer, "log_probs", noted)

    class Counted(CEPOTrainer):
        def training_step(self, *args, **kwargs):
            if not ran:
                embedding, tower = self.model.get_input_embeddings(), self._teachers.inner().model.visual
                embedding.register_forward_pre_hook(lambda _, ids: ran.append((self.state.global_step, ids[0])))
                tower.register_forward_pre_hook(
                    lambda _, args, kwargs: images.append((self.state.global_step, len(kwargs["grid_thw"]))),
                    with_kwargs=True,
                )
            return super().training_step(*args, **kwargs)

        def _compute_loss(self, model, inputs):
            self.token = self._image_token
            self.shown = int((inputs["prompt_ids"] == self.token).sum()) // 4  # a group has four rollouts
            return super()._compute_loss(model, inputs)

    args = CEPOConfig(output_dir=str(tmp_path), **(QUICK | {"freeze_vision_tower": True} | method))
    trainer = Counted(policy_path(), half_right, args, figures)
    trainer.train()
    step = 1  # step 0 has trials
    assert [count for of, count in images if of == step] == [2]
    assert sum(int((ids == trainer.token).sum()) for of, ids in ran if of == step) == prompts * trainer.shown
    asked = [requests for requests in asked if requests]  # of two scorers one may have no requests
    assert len(asked) == (2 if contexts else 0)
    for requests in asked:  # equal rollouts are scored once
        assert len(requests) == len(set(requests))
        assert 4 * contexts < len(requests) <= 8 * contexts


def test_a_trained_tower_runs_once_per_scorer(tmp_path, figures):
    counts = []
    args = CEPOConfig(output_dir=str(tmp_path), **(QUICK | {"method": "rlsd"}))
    trainer = CEPOTrainer(policy_path(), half_right, args, figures)
    tower = trainer._teachers.inner().model.visual
    tower.register_forward_pre_hook(lambda _, args, kwargs: counts.append(len(kwargs["grid_thw"])), with_kwargs=True)
    trainer.train()
    assert counts[-3:] == [2, 2, 2]
    assert not trainer._sharing.features._known  # no features outlive the passes, since weights change
