"""Whole optimiser steps: TRL's GRPOTrainer, and ours with each method and rule for r-.

All of them run at once and take turns, a step at a time, so that what else the machine does hits all alike. The
learning rate is 0, so that all sample the same rollouts from the same policy: of those that run prompts whole, and of
those that share them, the first of a round samples, and all of its kind are charged its seconds. lambda stays above 0.
"""

import copy
import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

import cepo.trainer.cepo_trainer
from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path
from cepo.methods.registry import applicable_options

from . import models
from .measure import in_random_order, median, seconds_and_memory
from .models import MERGE, PATCH

WHOLE = "whole prompts"  # in place of a rule: shared_prompt_update="never", which is TRL to the bit
# Method and rule for r-.
OURS = [
    ("grpo", WHOLE),
    ("grpo", ""),
    ("rlsd", ""),
    ("cepo", "lowest_reward"),
    ("cepo", "most_common"),
    ("cepo", "own"),
    ("cepo", "mixture"),
    ("cepo", "own_or_mixture"),
]
PARTS = ("generation", "teachers", "update")


class _Turns(TrainerCallback):
    """Trainers run side by side, each in a thread of its own, and take one optimiser step at a time, in turn."""

    def __init__(self) -> None:
        self.go, self.done = threading.Event(), threading.Event()
        self.failure: BaseException | None = None
        self._trainer: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer
        trainer.add_callback(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.train()
        except BaseException as failure:
            self.failure = failure
        self.done.set()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.go.wait()
        self.go.clear()
        set_seed(state.global_step)  # all trainers sample the same rollouts

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done.set()

    def step(self) -> None:
        """Let the trainer take one step."""
        self.go.set()
        self.done.wait()
        self.done.clear()
        if self.failure is not None:
            raise self.failure

    def finish(self) -> None:
        """Wait until the trainer has ended by itself."""
        self._thread.join()


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


def _answer_of(text: str, extractor: str) -> str:
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


class Sampled:
    """Rollouts of a round, sampled once by trainers of a kind, and the seconds that took."""

    def __init__(self) -> None:
        self.rollouts: dict[int, Any] = {}
        self.seconds: dict[int, float] = {}


class _Shares:
    """A trainer that takes the rollouts of its round from whoever sampled them first."""

    sampled: Sampled

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        step, shared = self.state.global_step, self.sampled
        if step not in shared.rollouts:
            started = time.perf_counter()
            shared.rollouts[step] = super()._generate_single_turn(*args, **kwargs)
            shared.seconds[step] = time.perf_counter() - started
            self.sampled_itself = step
        return copy.deepcopy(shared.rollouts[step])


class _Canned:
    """Rollouts drawn at random instead of sampled from the policy, for machines where sampling would dominate."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        generator = torch.Generator().manual_seed(self.state.global_step)
        lengths = (250 + 60 * torch.randn(len(prompt_ids), generator=generator)).round().clamp(16, 512).int().tolist()
        low, high = len(models.IDS), self.model.config.text_config.vocab_size
        completions = [torch.randint(low, min(high, 500), (n,), generator=generator).tolist() for n in lengths]
        return completions, None


@contextmanager
def answers_of(task: Task) -> Iterator[None]:
    """Let the rollouts of a task say what they are to have said."""
    final_answer = cepo.trainer.cepo_trainer.final_answer
    cepo.trainer.cepo_trainer.final_answer = final_answer if task.answers else _answer_of
    try:
        yield
    finally:
        cepo.trainer.cepo_trainer.final_answer = final_answer


def make_trainer(
    task: Task, method: str, rule: str, *, steps: int, canned: bool, folder: str, sampled: Sampled, mixin: Any = object
) -> GRPOTrainer:
    theirs = method == "trl"
    base = _Timed if theirs else CEPOTrainer
    bases = [one for one in (mixin, _Shares, _Canned if canned else object, base) if one is not object]
    trainer_class = type(base.__name__, tuple(bases), {"sampled": sampled})
    options = {
        "max_steps": steps,
        "num_generations": 8,
        "learning_rate": 0.0,
        "optim": "sgd",  # at that rate any optimiser will do, and this one holds no memory
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
        own = {"evidence_schedule": "constant", "evidence_steps": steps}
        own |= {"negative_reference": rule} if rule not in ("", WHOLE) else {}
        options |= {"method": method, **applicable_options(own, method)}
        options["shared_prompt_update"] = "never" if rule == WHOLE else "auto"
    set_seed(0)
    args = (GRPOConfig if theirs else CEPOConfig)(output_dir=folder, **options)
    trainer = trainer_class(task.fresh_model(), task.reward, args, task.dataset, processing_class=task.processor)
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(
    tasks: list[Task],
    methods: list[tuple[str, str]],
    *,
    repeats: int,
    canned: bool,
    say: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """One row of results for each task, method and rule; TRL's trainer first. A first step of each is not counted."""
    results = []
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder, answers_of(task):
            results += _run_task(task, [("trl", ""), *methods], repeats, canned, folder)
        for row in results[-len(methods) - 1 :]:
            say(row)
    return results


def _run_task(task: Task, ways: list[tuple[str, str]], repeats: int, canned: bool, folder: str) -> list[dict[str, Any]]:
    trainers, turns, kinds = {}, {}, {True: Sampled(), False: Sampled()}
    shares = {way: way[0] != "trl" and way[1] != WHOLE for way in ways}
    for way in ways:
        name, its = f"{folder}/{'-'.join(way)}", kinds[shares[way]]
        trainers[way] = make_trainer(task, *way, steps=1 + repeats, canned=canned, folder=name, sampled=its)
    # Only now: to make a trainer is to make accelerate's state anew, which all of them share.
    for way in ways:
        turns[way] = _Turns()
        turns[way].start(trainers[way])

    def one_step(way: tuple[str, str]) -> dict[str, float]:
        trainer = trainers[way]
        before, step = dict(trainer.seconds), trainer.state.global_step
        seconds, memory = seconds_and_memory(turns[way].step, trainer.accelerator.device)
        parts = {part: trainer.seconds[part] - before[part] for part in PARTS}
        if getattr(trainer, "sampled_itself", None) != step:
            seconds += kinds[shares[way]].seconds[step]
            parts["generation"] += kinds[shares[way]].seconds[step]
        return {"seconds": seconds, "peak_memory": memory, **parts}

    for way in ways:
        one_step(way)  # once for nothing
    rounds = in_random_order({way: partial(one_step, way) for way in ways}, repeats)
    for turn in turns.values():
        turn.finish()
    for step, rollouts in kinds[False].rollouts.items():
        assert kinds[True].rollouts.get(step, rollouts) == rollouts, "other rollouts were sampled"
    rows = []
    for way, steps in rounds.items():
        method, rule = way
        theirs = rounds["trl", ""]
        (zero_variance,) = (entry["frac_reward_zero_std"] for entry in trainers[way].state.log_history)
        rows.append(
            {
                "method": "grpo (TRL)" if method == "trl" else method,
                "rule": rule,
                "shape": task.name,
                "zero_variance": zero_variance,
                "seconds": median([step["seconds"] for step in steps]),
                # Of steps that stood next to each other in time, on the same rollouts.
                "ratio_to_trl_grpo": median(
                    [step["seconds"] / its["seconds"] for step, its in zip(steps, theirs, strict=True)]
                ),
                "ratios": [step["seconds"] / its["seconds"] for step, its in zip(steps, theirs, strict=True)],
                # What else the machine does only ever adds to a time.
                "ratio_of_fastest": min(step["seconds"] for step in steps) / min(step["seconds"] for step in theirs),
                "peak_memory": max(step["peak_memory"] for step in steps),
                **{f"{part}_seconds": median([step[part] for step in steps]) for part in PARTS},
            }
        )
    return rows
