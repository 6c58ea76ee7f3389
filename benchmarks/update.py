"""Update and sampling with whole prompts, as TRL runs them, and with shared prompts.

TRL runs prompt + completion for every rollout; `cepo.fast` runs each prompt once. Log-probs and gradients of both are
compared before anything is measured.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from cepo.fast.generation import PrefixSharingGenerator, SharedPrompts
from cepo.fast.tree import Tree, shared_prefixes, tree_of
from cepo.fast.tree_forward import tree_log_probs
from cepo.scoring.forward import padded
from cepo.scoring.requests import Prompt, Request

from .measure import in_random_order, median, seconds_and_memory
from .models import IDS
from .scorer import Batch, Shape, make_batch

SHAPES = [
    Shape("56 + 100", (8, 8), 38, (100, 20), contexts=1, groups=1),
    Shape("paper: 502 + 250", (40, 38), 120, (250, 60), contexts=1, groups=1),
]


@dataclass(frozen=True)
class Rows:
    """A micro-batch with the rollouts of one prompt, as TRL lays it out, and its tree.

    Attributes:
        inputs: Token ids, mask, token types, and the image inputs repeated for every row.
        width: Tokens of the prompt.
        prompt: The prompt.
        tree: The tree of the rollouts.
    """

    inputs: dict[str, Tensor]
    width: int
    prompt: Prompt
    tree: Tree

    @property
    def own(self) -> Tensor:
        """(B, T) mask of the completions."""
        return self.inputs["attention_mask"][:, self.width :].bool()


def rows_of(batch: Batch, device: torch.device) -> Rows:
    (prompt,), (completions,) = batch.prompts, batch.completions
    ids, mask = padded([prompt.ids + completion for completion in completions], device)
    types = (ids == IDS["<|image_pad|>"]).long()
    images = {name: torch.cat([values] * len(ids)).to(device) for name, values in prompt.images.items()}
    requests = [Request(0, prompt.ids, completion) for completion in completions]
    tree = tree_of(requests, shared_prefixes([prompt], requests))
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types, **images}
    return Rows(inputs, len(prompt.ids), prompt, tree)


def whole(model: Qwen3VLForConditionalGeneration, rows: Rows) -> Tensor:
    """(N,) log-probs of the completions as TRL computes them."""
    labels = rows.inputs["input_ids"].masked_fill(rows.inputs["attention_mask"] == 0, -100)
    labels[:, : rows.width] = -100
    found = model(labels=labels, fused_lm_head=True, **rows.inputs)
    return found.log_probs[:, rows.width - 1 :][rows.own]


def _updates(model: Any, rows: Rows) -> dict[str, Callable[[], Tensor]]:
    ways: dict[str, Callable[[], Tensor]] = {
        "whole": lambda: whole(model, rows),
        "tree": lambda: tree_log_probs(model, model, [rows.prompt], rows.tree)[0],
    }

    def update(way: Callable[[], Tensor], checkpointing: bool) -> Tensor:
        if checkpointing:
            model.gradient_checkpointing_enable()
        else:
            model.gradient_checkpointing_disable()
        model.zero_grad(set_to_none=True)
        log_probs = way()
        log_probs.sum().backward()
        return log_probs.detach()

    return {
        name + ", checkpointing" * checkpointing: partial(update, way, checkpointing)
        for checkpointing in (False, True)
        for name, way in ways.items()
    }


# Largest difference of a log-prob [nats], and of the gradient, relative to its norm, where bfloat16 reaches 0.015.
BOUNDS = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (1.0, 0.05)}


def _check(model: Any, updates: dict[str, Callable[[], Tensor]]) -> None:
    found = {}
    for name, update in updates.items():
        log_probs = update()
        found[name] = log_probs, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    expected, gradient = found["whole"]
    largest, share = BOUNDS[model.dtype]
    for name, (log_probs, own) in found.items():
        assert (log_probs - expected).abs().max() < largest, name
        assert (own.float() - gradient.float()).norm() < share * gradient.float().norm(), name


def _samplings(model: Any, rows: Rows, length: int) -> dict[str, Callable[[], Tensor]]:
    inputs = dict(rows.inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = inputs[name][:, : rows.width]
    # One token in a hundred ends a rollout: random weights hardly ever sample the EOS token.
    ends = list(range(len(IDS), len(IDS) + model.config.text_config.vocab_size // 100))
    generator = PrefixSharingGenerator(print)
    images = {name: values.to(model.device) for name, values in rows.prompt.images.items()}
    prompts = SharedPrompts([0], [0] * len(rows.own), images)
    options = {"max_new_tokens": length, "do_sample": True, "top_k": 0, "eos_token_id": ends, "pad_token_id": 0}

    def generate(shared: bool) -> Tensor:
        model.gradient_checkpointing_disable()
        torch.manual_seed(0)
        with generator.generating(model, ends, prompts) if shared else nullcontext():
            return model.generate(**inputs, **options)

    return {"whole": partial(generate, False), "shared": partial(generate, True)}


def run(
    model: Qwen3VLForConditionalGeneration,
    *,
    rollouts: int,
    repeats: int,
    say: Callable[[dict[str, Any]], None],
    shapes: Sequence[Shape] = SHAPES,
) -> list[dict[str, Any]]:
    """For each shape a row of the update and one of sampling: seconds, peak bytes, and ratios to whole prompts."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    results = []
    for shape in shapes:
        batch = make_batch(replace(shape, rollouts=rollouts), 0.0, model.config.text_config.vocab_size, model.dtype)
        device = model.device
        rows = rows_of(batch, device)
        updates = _updates(model.train(), rows)
        _check(model, updates)
        samplings = _samplings(model, rows, shape.completion[0])
        with torch.no_grad():
            for _ in range(2):  # the first call includes the trial
                same = torch.equal(samplings["whole"](), samplings["shared"]())
                assert same or model.dtype != torch.float32  # rounding changes samples in half precision
        for what, ways in (("update", updates), ("sampling", samplings)):
            model.zero_grad(set_to_none=True)
            timed = {name: partial(seconds_and_memory, way, device) for name, way in ways.items()}
            found = in_random_order(timed, repeats)
            seconds = {name: median([one for one, _ in values]) for name, values in found.items()}
            result = {
                "what": what,
                "shape": shape.name,
                "rollouts": rollouts,
                "seconds": seconds,
                "ratio": {
                    name: median([o / w for (o, _), (w, _) in zip(values, found["whole"], strict=True)])
                    for name, values in found.items()
                },
                "tokens": (len(rows.tree.ids), int(rows.inputs["attention_mask"].sum())) if what == "update" else None,
                "peak_memory": {name: max(held for _, held in values) for name, values in found.items()},
            }
            results.append(result)
            say(result)
    return results
