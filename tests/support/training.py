"""Small training runs of the real trainer, and what tests ask of them."""

import pytest
from trl import GRPOConfig, GRPOTrainer

import cepo.fast.prefix_cache
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
    """A reward that any model's rollouts differ in: the share of the letter a."""
    texts = [completion[0]["content"] for completion in completions]
    return [text.count("a") / max(1, len(text)) for text in texts]


def half_right(completions, **kwargs):
    """Right or wrong, whatever they say: every other one, so that each group has both."""
    return [0.0, 1.0] * (len(completions) // 2)


def wrong_answers(monkeypatch):
    """Short completions reach no answer; pretend that each rollout gave one."""
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "final_answer", lambda text, extractor: str(len(text)))


def make(tmp_path, dataset, model=None, reward=letters, trainer_class=CEPOTrainer, peft_config=None, **options):
    config_class = CEPOConfig if trainer_class is CEPOTrainer else GRPOConfig
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


@pytest.fixture(params=["vlm", "text"])
def task(request, figures, text_figures, text_model_path):
    return {"vlm": (figures, policy_path()), "text": (text_figures, text_model_path)}[request.param]


@pytest.fixture
def loss_inputs(monkeypatch):
    """What TRL's loss was given, batch by batch."""
    batches = []
    compute_loss = GRPOTrainer._compute_loss

    def spy(self, model, inputs):
        batches.append(inputs)
        return compute_loss(self, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", spy)
    return batches
