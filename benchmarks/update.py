"""Update and sampling with whole prompts, as TRL runs them, and with shared prompts.

TRL runs prompt + completion for every rollout; `cepo.fast` runs each prompt once. Log-probs and gradients of both are
compared before anything is measured.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from cepo.fast.generation import PrefixSharingGenerator, SharedPrompts
from cepo.fast.shared_rows import Rows, branched, packed

from .measure import in_random_order, median, seconds_and_memory
from .models import IDS
from .scorer import Batch, Shape, make_batch

SHAPES = [
    Shape("56 + 100", (8, 8), 38, (100, 20), contexts=1, groups=1),
    Shape("paper: 502 + 250", (40, 38), 120, (250, 60), contexts=1, groups=1),
]


def rows_of(batch: Batch) -> tuple[Rows, dict[str, Tensor]]:
    """A micro-batch with the rollouts of one prompt, and the image inputs repeated for every row."""
    (prompt,), (completions,) = batch.prompts, batch.completions
    width, longest = len(prompt.ids), max(map(len, completions))
    ids, mask = torch.zeros(2, len(completions), width + longest, dtype=torch.long).unbind()
    for row, completion in enumerate(completions):
        tokens = prompt.ids + completion
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    types = (ids == IDS["<|image_pad|>"]).long()
    owners, firsts = torch.zeros(len(ids), dtype=torch.long), torch.zeros(1, dtype=torch.long)
    images = {name: torch.cat([values] * len(ids)) for name, values in prompt.images.items()}
    return Rows(ids, mask, width, owners, firsts, {"mm_token_type_ids": types}, prompt.images), images


def whole(model: Qwen3VLForConditionalGeneration, rows: Rows, images: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies as TRL computes them."""
    labels = rows.ids.masked_fill(rows.mask == 0, -100)
    labels[:, : rows.width] = -100
    found = model(
        input_ids=rows.ids, attention_mask=rows.mask, labels=labels, fused_lm_head=True, **rows.token_types, **images
    )
    return found.log_probs[:, rows.width - 1 :], found.entropy[:, rows.width - 1 :]


def _updates(model: Any, rows: Rows, images: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    ways: dict[str, Callable[[], Any]] = {
        "whole": lambda: whole(model, rows, images),
        "branched": lambda: branched(model, rows),
        "packed": lambda: packed(model, rows),
    }
    mask = rows.mask[:, rows.width :]

    def update(way: Callable[[], Any]) -> Tensor:
        model.zero_grad(set_to_none=True)
        log_probs = way()[0] * mask
        log_probs.sum().backward()
        return log_probs.detach()

    return {name: partial(update, way) for name, way in ways.items()}


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


def _samplings(model: Any, rows: Rows, images: dict[str, Tensor], length: int) -> dict[str, Callable[[], Tensor]]:
    inputs = {"input_ids": rows.ids[:, : rows.width], "attention_mask": rows.mask[:, : rows.width]}
    inputs |= {name: types[:, : rows.width] for name, types in rows.token_types.items()}
    # One token in a hundred ends a rollout: random weights hardly ever sample the EOS token.
    ends = list(range(len(IDS), len(IDS) + model.config.text_config.vocab_size // 100))
    generator = PrefixSharingGenerator(print)
    prompts = SharedPrompts([0], [0] * len(rows.ids), rows.images)
    options = {"max_new_tokens": length, "do_sample": True, "top_k": 0, "eos_token_id": ends, "pad_token_id": 0}

    def generate(shared: bool) -> Tensor:
        torch.manual_seed(0)
        with generator.generating(model, ends, prompts) if shared else nullcontext():
            return model.generate(**inputs, **images, **options)

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
        rows, images = rows_of(batch)
        device = model.device
        rows = replace(
            rows,
            **{name: getattr(rows, name).to(device) for name in ("ids", "mask", "owners", "firsts")},
            token_types={name: values.to(device) for name, values in rows.token_types.items()},
            images={name: values.to(device) for name, values in rows.images.items()},
        )
        images = {name: values.to(device) for name, values in images.items()}
        updates = _updates(model.train(), rows, images)
        _check(model, updates)
        samplings = _samplings(model, rows, images, shape.completion[0])
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
                "tokens": rows.tokens() if what == "update" else None,
                "peak_memory": {name: max(held for _, held in values) for name, values in found.items()},
            }
            results.append(result)
            say(result)
    return results
