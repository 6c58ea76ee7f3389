"""The micro-batches of a divergence loss, and distributions by plain passes."""

import copy

import pytest
import torch

import cepo.trainer.cepo_trainer
from cepo.scoring.forward import evaluating


@pytest.fixture
def lessons(monkeypatch):
    """Micro-batches of the divergence loss, each with a copy of the policy and the loss."""
    seen = []
    divergence_loss = cepo.trainer.cepo_trainer.divergence_loss

    def spy(trainer, model, inputs):
        policy = copy.deepcopy(trainer.accelerator.unwrap_model(model))
        loss, sums = divergence_loss(trainer, model, inputs)
        seen.append((dict(inputs), policy, loss.detach()))
        return loss, sums

    monkeypatch.setattr(cepo.trainer.cepo_trainer, "divergence_loss", spy)
    return seen


def distributions(model, batch, prompt, row):
    """(T, V) log-probs along a completion after a prompt, in one plain pass, with the image."""
    kept = batch["completion_mask"][row].bool()
    ids = torch.cat([prompt, batch["completion_ids"][row][kept]]).unsqueeze(0)
    inputs = {"input_ids": ids}
    if "pixel_values" in batch:
        grids = batch["image_grid_thw"].prod(dim=1)
        patches = slice(int(grids[:row].sum()), int(grids[: row + 1].sum()))
        inputs |= {
            "pixel_values": batch["pixel_values"][patches],
            "image_grid_thw": batch["image_grid_thw"][row : row + 1],
            "mm_token_type_ids": (ids == model.config.image_token_id).long(),
        }
    with evaluating(model):
        # Not `model(...)`: TRL patches the instance, and a copy's patch would call the original.
        logits = type(model).forward(model, **inputs).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def student_prompt(batch, row):
    return batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]


def hinted_prompt(batch, row):
    return batch["teacher_ids"][row][batch["teacher_mask"][row].bool()]


def forward_kl(teacher, student):
    return (teacher.exp() * (teacher - student)).sum(-1)
