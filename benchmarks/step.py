"""Whole optimiser steps: TRL's GRPOTrainer, and ours with each method and rule for r-.

The learning rate is 0, so that all of them sample the same rollouts from the same policy; lambda stays above 0.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

import cepo.trainer
from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path

from . import models
from .measure import in_random_order, median, seconds_and_memory
from .models import MERGE, PATCH

# Method and rule for r-.
OURS = [
    ("grpo", ""),
    ("rlsd", ""),
    ("cepo", "lowest_reward"),
    ("cepo", "most_common"),
    ("cepo", "own"),
    ("cepo", "mixture"),
    ("cepo", "own_or_mixture"),
]
PARTS = ("generation", "teachers", "update")


class _Clock(TrainerCallback):
    """Seconds of each optimiser step, from its beginning to its end."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(time.perf_counter() - self._started)


@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Attributes:
        model: Folder of a model, or one built anew for every run.
        reward: TRL's reward function.
        answers: Whether the rollouts of the model say an answer; if not, each is taken to have said one of its own.
    """

    name: str
    model: Any
    processor: Any
    dataset: Dataset
    reward: Any
    options: dict[str, Any]
    answers: bool

    def fresh_model(self) -> PreTrainedModel:
        if isinstance(self.model, str):
            return AutoModelForImageTextToText.from_pretrained(self.model)
        return self.model()


def default_task(groups: int) -> Task:
    """The figures task and the shipped policy, as `cepo train` runs them."""
    options = {
        "per_device_train_batch_size": 8 * groups,
        "max_completion_length": 176,
        "gradient_checkpointing": False,
    }
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    return Task("default", policy_path(), processor, load_figures("train", 256), accuracy_reward, options, answers=True)


def paper_task(groups: int, zero_variance: float, architecture: str, device: torch.device, dtype: torch.dtype) -> Task:
    """Prompts of about 500 tokens with an image, random weights, completions of 250 tokens, and rewards of which a
    given share of the groups has no variance."""
    height, width = 40, 38
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    processor.image_processor.size = {"shortest_edge": PATCH**2, "longest_edge": PATCH**2 * height * width}
    picture = Image.effect_noise((width * PATCH, height * PATCH), 80).convert("RGB")
    words = load_figures("train", 1)[0]["prompt"][0]["content"]
    text = words
    target = 500 - height * width // MERGE**2
    while len(processor.tokenizer(text).input_ids) < target:
        text += " " + words
    text = processor.tokenizer.decode(processor.tokenizer(text).input_ids[:target])
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{number} {text}"}],
            "image": picture,
            "solution": "\\boxed{(1, 2, 3)}",
        }
        for number in range(64)
    ]
    dead = round(zero_variance * groups)

    def reward(completions: list[Any], **_: Any) -> list[float]:
        group = [position // 8 for position in range(len(completions))]
        return [0.0 if group[p] < dead else float(p % 2) for p in range(len(completions))]

    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": groups, "max_completion_length": 250}
    return Task(
        "paper",
        lambda: models.build(architecture, device, dtype),
        processor,
        Dataset.from_list(rows),
        reward,
        {**options, "gradient_checkpointing": device.type == "cuda"},
        answers=False,
    )


def _answer_of(text: str) -> str:
    """One of six answers, by what the text is: as alike as wrong answers of one policy are."""
    kind = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 6
    return f"({20 + kind}, {70 - kind}, {90 + kind})"


class _Timed(GRPOTrainer):
    """TRL's trainer with the clock that ours has."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._preparing = 0.0
        super().__init__(*args, **kwargs)

    def _generate(self, prompts: Any) -> Any:
        started = time.perf_counter()
        output = super()._generate(prompts)
        self.seconds["generation"] += time.perf_counter() - started
        return output

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        started = time.perf_counter()
        output = super()._generate_and_score_completions(inputs)
        self._preparing = time.perf_counter() - started
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._preparing, started = 0.0, time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self.seconds["update"] += time.perf_counter() - started - self._preparing
        return loss


class _Canned:
    """Rollouts drawn at random instead of sampled from the policy, for machines where sampling would dominate."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        generator = torch.Generator().manual_seed(self.state.global_step)
        lengths = (250 + 60 * torch.randn(len(prompt_ids), generator=generator)).round().clamp(16, 512).int().tolist()
        low, high = len(models.IDS), self.model.config.text_config.vocab_size
        completions = [torch.randint(low, min(high, 500), (n,), generator=generator).tolist() for n in lengths]
        return completions, None


def seconds_of_steps(task: Task, method: str, rule: str, *, steps: int, canned: bool) -> dict[str, float]:
    """Median seconds of a step, after a first one that is not counted, and the mean of its parts."""
    theirs = method == "trl"
    base = _Timed if theirs else CEPOTrainer
    trainer_class = type(base.__name__, (_Canned, base), {}) if canned else base
    options = {
        "max_steps": 1 + steps,
        "num_generations": 8,
        "learning_rate": 0.0,
        "epsilon_high": 0.28,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "bf16": False,
        "log_completions": False,
        **task.options,
    }
    if not theirs:
        options |= {"method": method, "evidence_schedule": "constant", "evidence_steps": 1 + steps}
        options |= {"negative_reference": rule} if rule else {}
    clock = _Clock()
    set_seed(0)
    final_answer = cepo.trainer.final_answer
    with tempfile.TemporaryDirectory() as folder:
        args = (GRPOConfig if theirs else CEPOConfig)(output_dir=folder, **options)
        trainer = trainer_class(
            task.fresh_model(), task.reward, args, task.dataset, processing_class=task.processor, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        try:
            cepo.trainer.final_answer = final_answer if task.answers else _answer_of
            _, memory = seconds_and_memory(trainer.train, trainer.accelerator.device)
        finally:
            cepo.trainer.final_answer = final_answer
    split = {part: trainer.seconds[part] / (1 + steps) for part in PARTS}
    (zero_variance,) = (entry["frac_reward_zero_std"] for entry in trainer.state.log_history)
    return {"seconds": median(clock.steps[1:]), "zero_variance": zero_variance, "peak_memory": memory, **split}


def run(
    tasks: list[Task],
    methods: list[tuple[str, str]],
    *,
    repeats: int,
    steps: int,
    canned: bool,
    say: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """One row of results for each task, method and rule; TRL's trainer first."""
    results = []
    for task in tasks:
        ways = {
            (method, rule): partial(seconds_of_steps, task, method, rule, steps=steps, canned=canned)
            for method, rule in [("trl", ""), *methods]
        }
        rounds = in_random_order(ways, repeats)
        seconds = {way: median([row["seconds"] for row in rows]) for way, rows in rounds.items()}
        for (method, rule), rows in rounds.items():
            results.append(
                {
                    "method": "grpo (TRL)" if method == "trl" else method,
                    "rule": rule,
                    "shape": task.name,
                    "zero_variance": rows[0]["zero_variance"],
                    "seconds": seconds[method, rule],
                    "ratio_to_trl_grpo": seconds[method, rule] / seconds["trl", ""],
                    "peak_memory": max(row["peak_memory"] for row in rows),
                    **{f"{part}_seconds": median([row[part] for row in rows]) for part in PARTS},
                }
            )
            say(results[-1])
    return results
