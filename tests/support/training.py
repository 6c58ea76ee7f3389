"""Small training runs of the real trainer."""

import math

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

import cepo.fast.tree_forward
import cepo.scoring.forward
import cepo.trainer.cepo_trainer
from cepo import CEPOConfig, CEPOTrainer, policy_path

QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 16,
    "learning_rate": 1e-3,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def letters(completions, **kwargs):
    """The share of the letter a, which differs between rollouts of any model."""
    texts = [completion[0]["content"] for completion in completions]
    return [text.count("a") / max(1, len(text)) for text in texts]


def half_right(completions, **kwargs):
    """Every other rollout is correct, whatever its text."""
    return [0.0, 1.0] * (len(completions) // 2)


def wrong_answers(monkeypatch):
    """Give each rollout an answer; short completions have none."""
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "final_answer", lambda text, extractor: str(len(text)))


def make(tmp_path, dataset, model=None, reward=letters, trainer_class=CEPOTrainer, peft_config=None, **options):
    config_class = CEPOConfig if issubclass(trainer_class, CEPOTrainer) else GRPOConfig
    args = config_class(output_dir=str(tmp_path / "out"), **(QUICK | options))
    return trainer_class(model or policy_path(), reward, args, dataset, peft_config=peft_config)


def train(*args, **options):
    trainer = make(*args, **options)
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    return trainer


def weights_of(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def is_sound(trainer):
    """Finite weights, loss and gradient, and no skipped step."""
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())
    for name in ("loss", "grad_norm"):
        assert all(math.isfinite(value) for value in logged(trainer, name))
    assert logged(trainer, "cepo/skipped_steps") == [0.0] * trainer.state.global_step
    return True


@pytest.fixture(params=["vlm", "text"])
def task(request, figures, text_figures, text_model_path):
    return {"vlm": (figures, policy_path()), "text": (text_figures, text_model_path)}[request.param]


@pytest.fixture
def loss_inputs(monkeypatch):
    """The micro-batches that TRL's loss gets."""
    batches = []
    compute_loss = GRPOTrainer._compute_loss

    def spy(self, model, inputs):
        batches.append(inputs)
        return compute_loss(self, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", spy)
    return batches
