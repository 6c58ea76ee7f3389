"""Train the shipped warm-started policy of the figures task.

    python -m scripts.make_figures_policy --output_dir src/cepo/tasks/figures/policy

Three phases, since end-to-end training from scratch does not learn to use the image (LOG.md):

1. reading: the vision tower with an attention-pooling head per printed number; the heads are discarded;
2. reasoning: next-token prediction on solutions with random mistakes, some conditioned on the solution's final answer.
   The vision tower trains at a lower rate;
3. beliefs: the same on solutions with systematic mistakes (`cepo.tasks.figures.beliefs`), conditioned on every hint
   content of cepo's methods: an answer, a whole solution, a part of one, a verdict.

Every phase saves its weights in `--work_dir`; a second call skips finished phases. All phases are seeded and use the
train split only.
"""

import argparse
import functools
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from experiments.erroneous_solutions import work
from experiments.policy_architecture import build_model, build_processor
from torch import nn
from torch.nn.functional import cross_entropy

from cepo.methods.contrib.cscr import SAID_CORRECT, SAID_WRONG, CSCROptions
from cepo.methods.rlcsd import HINT_TEMPLATE as RLCSD_HINT_TEMPLATE
from cepo.methods.rlcsd import asserted
from cepo.references.hints import DEFAULT_HINT_TEMPLATE, SOLUTION_HINT_TEMPLATE, add_hint, fill_hint
from cepo.scoring.prompts import cut_text
from cepo.tasks.figures.data import PLAIN_HINT_TEMPLATE
from cepo.tasks.figures.drawing import JITTER, draw
from cepo.tasks.figures.problem import MAX_STEPS, MIN_STEPS, Problem, format_answer, make_problem
from cepo.tasks.figures.solutions import write_solution

SEED = 20261122
Content = Literal["answer", "whole", "prefix", "suffix", "asserted", "outcome"]
PARTS = (32, 48, 64, 96)  # lengths of a prefix or suffix [tokens]
DIGITS_WEIGHT = 3.0  # loss weight of digits in phase 3; filler is random by design


@dataclass(frozen=True)
class Hint:
    """A hint in the prompt of a training solution.

    Attributes:
        template: The wording; None: no hint.
        content: Content of the hint, from the solution that follows or another wording of its numbers.
        styled: Whether the solution's wording shifts under the hint, as in large models.
    """

    template: str | None
    content: Content = "answer"
    styled: bool = False

    @property
    def long(self) -> bool:
        return self.content in ("whole", "prefix", "suffix", "asserted")


@dataclass(frozen=True)
class Lesson:
    """A run of next-token prediction with a fresh optimizer and a cosine schedule.

    Attributes:
        steps: Batches.
        rate, tower_rate: Peak learning rates of language model and vision tower.
        error_rate: Probability of a random mistake in a step of a solution.
        belief_rate: Probability of the systematic mistake in a case.
        hints: (hint, share of the solutions).
        digits_weight: Loss weight of digits.
    """

    steps: int
    rate: float
    tower_rate: float
    error_rate: float
    belief_rate: float
    hints: tuple[tuple[Hint, float], ...]
    digits_weight: float = 1.0


ANSWER_HINTS = (
    (Hint(None), 0.60),
    (Hint(DEFAULT_HINT_TEMPLATE, styled=True), 0.25),
    (Hint(PLAIN_HINT_TEMPLATE), 0.15),
)
ALL_HINTS = (
    (Hint(None), 0.43),
    (Hint(DEFAULT_HINT_TEMPLATE, styled=True), 0.12),
    (Hint(PLAIN_HINT_TEMPLATE), 0.10),
    # The template for texts, around an answer.
    (Hint(SOLUTION_HINT_TEMPLATE), 0.03),
    (Hint(DEFAULT_HINT_TEMPLATE, "whole", styled=True), 0.06),
    (Hint(SOLUTION_HINT_TEMPLATE, "whole"), 0.06),
    (Hint(DEFAULT_HINT_TEMPLATE, "prefix", styled=True), 0.025),
    (Hint(SOLUTION_HINT_TEMPLATE, "prefix"), 0.025),
    (Hint(DEFAULT_HINT_TEMPLATE, "suffix", styled=True), 0.025),
    (Hint(SOLUTION_HINT_TEMPLATE, "suffix"), 0.025),
    (Hint(RLCSD_HINT_TEMPLATE, "asserted"), 0.06),
    (Hint(CSCROptions.hint_template, "outcome"), 0.04),
)
REASONING = (
    Lesson(1200, 2.5e-3, 5e-4, 0.15, 0.0, ANSWER_HINTS),
    Lesson(800, 1.5e-3, 3e-4, 0.15, 0.0, ANSWER_HINTS),
)
BELIEFS = (
    # Systematic mistakes are learned fastest at rate 1; later lessons lower the rate.
    Lesson(500, 1.5e-3, 2e-4, 0.05, 1.0, ALL_HINTS, DIGITS_WEIGHT),
    Lesson(900, 1.2e-3, 2e-4, 0.10, 0.64, ALL_HINTS, DIGITS_WEIGHT),
    # The model made the mistake in 0.54 of the cases, so the rate rises again.
    Lesson(500, 8e-4, 1e-4, 0.10, 0.74, ALL_HINTS, DIGITS_WEIGHT),
    Lesson(350, 6e-4, 6e-5, 0.08, 0.76, ALL_HINTS, DIGITS_WEIGHT),
    # Arithmetic mistakes were at 0.72.
    Lesson(120, 4e-4, 0.0, 0.09, 0.745, ALL_HINTS, DIGITS_WEIGHT),
)
FINISHED = "finished"  # a file beside the weights of a finished phase
SLOTS = MAX_STEPS + 1  # printed numbers in the longest problem
ABSENT = -1  # a number that a shorter problem lacks


class ReadingHeads(nn.Module):
    """Attention pooling per printed number, then a classifier for each of its two digits, for phase 1."""

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
    # The library's initial scale of 0.02 is too small at this width.
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    stream = Problems(SEED + 1)
    heads: ReadingHeads | None = None
    # Positions jitter more as accuracy rises; with full jitter from the start the loss stays at the chance level.
    jitter, accuracy = 0.0, 0.0
    for step in range(steps):
        problems = stream.take(batch, (MIN_STEPS, MAX_STEPS))
        pixels = processor.image_processor([draw(problem, jitter=jitter) for problem in problems], return_tensors="pt")
        target = torch.full((batch, SLOTS, 2), ABSENT)
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
        there = target != ABSENT
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


def content_of(hint: Hint, problem: Problem, numbers: list[tuple[int, int, int]], processor, rng: random.Random) -> str:
    """The content of a hint about the solution with these numbers."""
    results = [result for *_, result in numbers]
    if hint.content == "answer":
        return format_answer(results)
    if hint.content == "outcome":
        return SAID_CORRECT if tuple(results) == problem.angles else SAID_WRONG
    # Another rollout with the same numbers, worded as without a hint.
    text = write_solution(numbers, rng)
    if hint.content == "asserted":
        return asserted(text, format_answer(results))
    return text if hint.content == "whole" else cut_text(processor, text, hint.content, rng.choice(PARTS))


def make_batch(processor, problems: list[Problem], lesson: Lesson, rng: random.Random) -> dict[str, torch.Tensor]:
    """Model inputs of solutions: right-padded, with labels on the completions only."""
    tokenizer = processor.tokenizer
    images, rows = [], []
    # Batches hold either long or short hints, for less padding.
    share = sum(weight for hint, weight in lesson.hints if hint.long)
    long = share > 0 and rng.random() < share
    hints, weights = zip(*[(hint, weight) for hint, weight in lesson.hints if hint.long == long], strict=True)
    for problem in problems:
        (hint,) = rng.choices(hints, weights)
        numbers = work(problem, rng, error_rate=lesson.error_rate, belief_rate=lesson.belief_rate)
        completion = write_solution(numbers, rng, styled=hint.styled)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": problem.question}]}]
        if hint.template is not None:
            messages = add_hint(messages, fill_hint(hint.template, content_of(hint, problem, numbers, processor, rng)))
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


def completion_loss(model, batch: dict[str, torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the completion tokens [nats]; `weights` (V,): the weight of each token id."""
    labels = batch.pop("labels")
    hidden = model.model(**batch).last_hidden_state
    kept = labels[:, 1:] != -100
    return cross_entropy(model.lm_head(hidden[:, :-1][kept]), labels[:, 1:][kept], weight=weights)


def learn_solutions(model, processor, lesson: Lesson, *, number: int, batch: int, save, say) -> None:
    """Train one lesson; its `number` is the seed."""
    rng = random.Random(SEED + 2 + 2 * number)
    stream = Problems(SEED + 3 + 2 * number)
    texts = processor.tokenizer.batch_decode([[token] for token in range(len(processor.tokenizer))])
    weights = torch.tensor([lesson.digits_weight if text.strip().isdigit() else 1.0 for text in texts])
    tower = list(model.model.visual.parameters())
    seen = {id(parameter) for parameter in tower}
    language = [parameter for parameter in model.parameters() if id(parameter) not in seen]
    rates = (lesson.rate, lesson.tower_rate)
    groups = [{"params": language}, {"params": tower}]
    optimizer = torch.optim.AdamW(groups, lr=lesson.rate, weight_decay=0.01, betas=(0.9, 0.98))
    average = None
    for step in range(lesson.steps):
        # One problem length per batch, for less padding.
        count = rng.choices(range(MIN_STEPS, MAX_STEPS + 1), [1, 2, 3, 2])[0]
        loss = completion_loss(model, make_batch(processor, stream.take(batch, (count, count)), lesson, rng), weights)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step, lesson.steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 49:
            say(f"lesson {number}, {step + 1}/{lesson.steps} loss {average:.4f}")
        if step % 250 == 249:
            save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--work_dir", type=Path, default=Path("figures-policy"), help="weights of each phase")
    parser.add_argument("--reading_steps", type=int, default=1100)
    parser.add_argument("--batch_size", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    started = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {message}", flush=True)

    rng = random.Random(SEED)
    corpus = []
    for problem in Problems(SEED).take(4000, (MIN_STEPS, MAX_STEPS)):
        hints = [
            hint.template.format(answer=format_answer(problem.angles)) for hint, _ in ANSWER_HINTS if hint.template
        ]
        corpus += [problem.question, write_solution(work(problem, rng), rng), "user\nassistant\n", *hints]
    processor = build_processor(corpus)
    # Each lesson has its seed, so interruptions change nothing.
    lessons = {f"lesson-{number}": lesson for number, lesson in enumerate((*REASONING, *BELIEFS))}
    done = [name for name in ("reading", *lessons) if (arguments.work_dir / name / FINISHED).exists()]
    model = build_model(processor)
    if done:
        model = type(model).from_pretrained(arguments.work_dir / done[-1], dtype=torch.float32)
        say(f"continuing from the weights of {done[-1]}")
    say(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens")

    def save(folder: Path, mark: str | None = None) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if mark:
            (folder / mark).touch()

    model.train()
    batch = arguments.batch_size
    if not done:
        learn_to_read(model, processor, steps=arguments.reading_steps, batch=batch, say=say)
        save(arguments.work_dir / "reading", FINISHED)
    for number, (name, lesson) in enumerate(lessons.items()):
        if name in done:
            continue
        folder = arguments.work_dir / name
        keep = functools.partial(save, folder)
        learn_solutions(model, processor, lesson, number=number, batch=batch, save=keep, say=say)
        save(folder, FINISHED)
    model.eval()
    save(arguments.output_dir)


if __name__ == "__main__":
    main()
