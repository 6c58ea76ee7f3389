"""Makes the warm-started policy of the figures task that ships with cepo.

Two phases, because end-to-end training from scratch never starts to look at the image (LOG.md):

1. reading: the vision tower alone, with an attention-pooling head per printed number; the heads are then thrown away;
2. language: next-token prediction on worked solutions, a share of them wrong, a share of them under a hint that names
   the answer which the solution reaches, right or wrong. The vision tower goes on learning at a lower rate.

    python scripts/make_figures_policy.py --output_dir src/cepo/tasks/figures/policy

Both phases are seeded and use problems of the train split only.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cepo.references.hints import DEFAULT_HINT_TEMPLATE, add_hint, fill_hint
from cepo.tasks.figures.architecture import build_model, build_processor
from cepo.tasks.figures.data import PLAIN_HINT_TEMPLATE
from cepo.tasks.figures.drawing import JITTER, draw
from cepo.tasks.figures.problem import MAX_STEPS, MIN_STEPS, Problem, format_answer, make_problem
from cepo.tasks.figures.solutions import work, write_solution

SEED = 20261122
ERROR_RATE = 0.15  # probability that a step of a training solution goes wrong
# Kinds of training examples: no hint; the default hint, under which the wording shifts a little; a second wording of
# the hint, under which it does not.
HINTS = ((None, 0.60), (DEFAULT_HINT_TEMPLATE, 0.25), (PLAIN_HINT_TEMPLATE, 0.15))
SLOTS = MAX_STEPS + 1  # printed numbers in the longest problem
NOTHING = -1  # a number that a shorter problem does not have


class ReadingHeads(nn.Module):
    """Attention pooling per printed number, then a classifier for each of its two digits. Only for phase 1."""

    def __init__(self, width: int, image_tokens: int):
        super().__init__()
        self.position = nn.Parameter(torch.randn(image_tokens, width) * 0.5)
        self.query = nn.Parameter(torch.randn(2 * SLOTS, width) * 0.5)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.digits = nn.Linear(width, 10)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, N, D) image tokens to (B, slots, 2, 10) digit logits."""
        keys = self.key(features + self.position)
        attention = (self.query @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])).softmax(-1)
        pooled = attention @ self.value(features + self.position)
        return self.digits(pooled).unflatten(1, (SLOTS, 2))


def cosine(step: int, steps: int, warm_up: int = 50, floor: float = 0.02) -> float:
    progress = min(1.0, step / steps)
    return min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class Problems:
    """An endless seeded stream of training problems."""

    def __init__(self, seed: int):
        self.index, self.seed = 0, seed

    def take(self, count: int, steps: tuple[int, int]) -> list[Problem]:
        start, self.index = self.index, self.index + count
        return [make_problem("train", index, seed=self.seed, steps=steps) for index in range(start, self.index)]


def learn_to_read(model, processor, *, steps: int, batch: int, say) -> None:
    tower = model.model.visual
    # The library's initial scale of 0.02 is meant for wide models; at this width it leaves the features too faint.
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    stream = Problems(SEED + 1)
    heads: ReadingHeads | None = None
    # The numbers stand still at first, and stray the further the better they are read: with the full jitter from the
    # start, the loss never leaves the plateau of guessing.
    jitter, accuracy = 0.0, 0.0
    for step in range(steps):
        problems = stream.take(batch, (MIN_STEPS, MAX_STEPS))
        pixels = processor.image_processor([draw(problem, jitter=jitter) for problem in problems], return_tensors="pt")
        target = torch.full((batch, SLOTS, 2), NOTHING)
        for row, problem in enumerate(problems):
            for slot, number in enumerate((problem.start, *problem.labels)):
                target[row, slot] = torch.tensor(divmod(number, 10))
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        features = features.view(batch, -1, features.shape[-1])
        if heads is None:
            heads = ReadingHeads(features.shape[-1], features.shape[1])
            parameters = [*tower.parameters(), *heads.parameters()]
            optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, betas=(0.9, 0.98))
        logits = heads(features)
        there = target != NOTHING
        loss = cross_entropy(logits[there], target[there])
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * cosine(step, steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        accuracy = 0.9 * accuracy + 0.1 * (logits.argmax(-1) == target)[there].float().mean().item()
        if accuracy > 0.7:
            jitter = min(JITTER, jitter + 0.02)
        if step % 50 == 49:
            say(f"reading {step + 1}/{steps} loss {loss.item():.3f} digits {accuracy:.3f} jitter {jitter:.2f} px")


def make_batch(processor, problems: list[Problem], rng: random.Random) -> dict[str, torch.Tensor]:
    """Model inputs of worked solutions: right-padded, labels on the completions only."""
    tokenizer = processor.tokenizer
    images, rows = [], []
    for problem in problems:
        template = rng.choices([hint for hint, _ in HINTS], [weight for _, weight in HINTS])[0]
        numbers = work(problem, rng, error_rate=ERROR_RATE)
        completion = write_solution(numbers, rng, styled=template == DEFAULT_HINT_TEMPLATE)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": problem.question}]}]
        if template is not None:
            messages = add_hint(messages, fill_hint(template, format_answer([result for *_, result in numbers])))
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images.append(draw(problem))
        rows.append((prompt, completion))
    pixels = processor.image_processor(images, return_tensors="pt")
    per_image = int(pixels["image_grid_thw"][0].prod()) // processor.image_processor.merge_size**2
    width = 0
    encoded = []
    for prompt, completion in rows:
        prompt = prompt.replace(processor.image_token, processor.image_token * per_image)
        prompt_ids = tokenizer(prompt).input_ids
        completion_ids = [*tokenizer(completion).input_ids, tokenizer.eos_token_id]
        encoded.append((prompt_ids, completion_ids))
        width = max(width, len(prompt_ids) + len(completion_ids))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (prompt_ids, completion_ids) in enumerate(encoded):
        length = len(prompt_ids) + len(completion_ids)
        ids[row, :length] = torch.tensor(prompt_ids + completion_ids)
        labels[row, len(prompt_ids) : length] = torch.tensor(completion_ids)
        mask[row, :length] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "mm_token_type_ids": (ids == processor.image_token_id).int(),
        **pixels,
    }


def completion_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the completion tokens [nats]; logits only where there are labels."""
    labels = batch.pop("labels")
    hidden = model.model(**batch).last_hidden_state
    kept = labels[:, 1:] != -100
    return cross_entropy(model.lm_head(hidden[:, :-1][kept]), labels[:, 1:][kept])


def learn_to_reason(model, processor, *, cycle: int, steps: int, scale: float, batch: int, save, say) -> None:
    rng = random.Random(SEED + 2 + 2 * cycle)
    stream = Problems(SEED + 3 + 2 * cycle)
    tower = list(model.model.visual.parameters())
    seen = {id(parameter) for parameter in tower}
    language = [parameter for parameter in model.parameters() if id(parameter) not in seen]
    rates = (2.5e-3 * scale, 5e-4 * scale)
    groups = [{"params": language}, {"params": tower}]
    optimizer = torch.optim.AdamW(groups, lr=rates[0], weight_decay=0.01, betas=(0.9, 0.98))
    average = None
    for step in range(steps):
        # One length of problem per batch keeps the padding small.
        count = rng.choices(range(MIN_STEPS, MAX_STEPS + 1), [1, 2, 3, 2])[0]
        loss = completion_loss(model, make_batch(processor, stream.take(batch, (count, count)), rng))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step, steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 49:
            say(f"language, cycle {cycle}, {step + 1}/{steps} loss {average:.4f}")
        if step % 250 == 249:
            save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--reading_steps", type=int, default=1100)
    parser.add_argument("--language_steps", type=int, nargs="+", default=[1200, 800])
    parser.add_argument("--batch_size", type=int, default=64)
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    started = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {message}", flush=True)

    rng = random.Random(SEED)
    corpus = []
    for problem in Problems(SEED).take(4000, (MIN_STEPS, MAX_STEPS)):
        hints = [hint.format(answer=format_answer(problem.angles)) for hint, _ in HINTS if hint]
        corpus += [problem.question, write_solution(work(problem, rng), rng), "user\nassistant\n", *hints]
    processor = build_processor(corpus)
    model = build_model(processor)
    say(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens")

    def save() -> None:
        model.save_pretrained(arguments.output_dir)
        processor.save_pretrained(arguments.output_dir)

    model.train()
    learn_to_read(model, processor, steps=arguments.reading_steps, batch=arguments.batch_size, say=say)
    save()
    for cycle, steps in enumerate(arguments.language_steps):
        # Each cycle has a fresh optimiser and a learning rate that falls to 0; the first one starts higher.
        scale = 1.0 if cycle == 0 else 0.6
        learn_to_reason(
            model, processor, cycle=cycle, steps=steps, scale=scale, batch=arguments.batch_size, save=save, say=say
        )
    model.eval()
    save()
    say(json.dumps({"reading_steps": arguments.reading_steps, "language_steps": arguments.language_steps}))


if __name__ == "__main__":
    main()
