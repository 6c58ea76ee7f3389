"""Whole optimizer steps of TRL's GRPOTrainer and of CEPOTrainer with each method and negative rule.

On a CPU all trainers run at once, each in a thread, and take steps in turn, so that other load affects all equally; on
a GPU one after another, since each holds a model. The learning rate is 0, so all sample the same rollouts. These are
sampled twice a round, once with whole and once with shared prompts, and the seconds count for every trainer of the
kind. lambda stays above 0.
"""

import copy
import gc
import hashlib
import tempfile
import threading
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
from cepo.trainer.metrics import Stopwatch

from . import models
from .measure import clock, in_random_order, median, seconds_and_memory
from .models import MERGE, PATCH

WHOLE = "whole prompts"  # instead of a rule: shared_prompt_update="never", bit-identical to TRL
Way = tuple[str, str]  # method and negative rule
METHODS: list[Way] = [
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
    """Runs a trainer in a thread, one optimizer step per call of `step`."""

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
        """Run one optimizer step and wait for it."""
        self.go.set()
        self.done.wait()
        self.done.clear()
        if self.failure is not None:
            raise self.failure

    def finish(self) -> None:
        """Wait for the end of training."""
        self._thread.join()


@dataclass(frozen=True)
class Task:
    """Model, data, reward and options.

    Attributes:
        model: Folder of a model, or a function that builds one.
        reward: A TRL reward function.
        has_answers: Whether rollouts contain answers; otherwise answers are made up.
        completion: Mean and standard deviation of the lengths of canned rollouts [tokens].
        peft_config: Of TRL's trainers.
    """

    name: str
    model: Any
    processor: Any
    dataset: Dataset
    reward: Any
    options: dict[str, Any]
    has_answers: bool
    completion: tuple[int, int] = (250, 60)
    peft_config: Any = None

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
        "use_cpu": True,
    }
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    return Task("default", policy_path(), processor, load_figures("train", 256), accuracy_reward, options, True)


def paper_task(
    groups: int,
    zero_variance: float,
    architecture: str,
    device: torch.device,
    dtype: torch.dtype,
    completion: tuple[int, int] = (250, 60),
    peft_config: Any = None,
    prompt: int = 500,
    image: tuple[int, int] = (40, 38),
    **options: Any,
) -> Task:
    """Prompts with an image, random weights, some zero-variance groups.

    Args:
        groups: Prompts of a step, with 8 rollouts each.
        zero_variance: Share of the groups without variance.
        architecture, device, dtype: Of the model; see `models.build`.
        completion: Mean and standard deviation of the lengths of canned rollouts [tokens].
        peft_config: For adapters.
        prompt: Length of a prompt [tokens].
        image: Height and width of its image [patches].
        options: Options of the trainer.
    """
    height, width = image
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    processor.image_processor.size = {"shortest_edge": PATCH**2, "longest_edge": PATCH**2 * height * width}
    picture = Image.effect_noise((width * PATCH, height * PATCH), 80).convert("RGB")
    words = load_figures("train", 1)[0]["prompt"][0]["content"]
    text = words
    target = prompt - height * width // MERGE**2
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
    zero = round(zero_variance * groups)

    def reward(completions: list[Any], **_: Any) -> list[float]:
        group = [position // 8 for position in range(len(completions))]
        return [0.0 if group[p] < zero else float(p % 2) for p in range(len(completions))]

    fixed = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": groups,
        "max_completion_length": 250,
        "gradient_checkpointing": device.type == "cuda",
        "use_cpu": device.type == "cpu",
    }
    return Task(
        "paper",
        lambda: models.build(architecture, device, dtype),
        processor,
        Dataset.from_list(rows),
        reward,
        {**fixed, **options},
        has_answers=False,
        completion=completion,
        peft_config=peft_config,
    )


def _answer_of(text: str, extractor: str) -> str:
    """One of six answers, chosen by a hash of the text."""
    kind = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 6
    return f"({20 + kind}, {70 - kind}, {90 + kind})"


class _Timed(GRPOTrainer):
    """TRL's trainer with the timings of CEPOTrainer."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._stopwatch = Stopwatch(*PARTS)
        super().__init__(*args, **kwargs)

    @property
    def seconds(self) -> dict[str, float]:
        return self._stopwatch.seconds

    def _generate(self, prompts: Any) -> Any:
        with self._stopwatch.measure("generation"):
            return super()._generate(prompts)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self._stopwatch.measure(None):
            return super()._generate_and_score_completions(inputs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._stopwatch.measure("update"):
            return super().training_step(*args, **kwargs)


class Sampled:
    """Rollouts of each round and the seconds of sampling them, for the trainers of one kind."""

    def __init__(self) -> None:
        self.rollouts: dict[int, Any] = {}
        self.seconds: dict[int, float] = {}


class _SharesRollouts:
    """A trainer that reuses the rollouts that another trainer of its kind sampled in this round."""

    sampled: Sampled

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        step, shared = self.state.global_step, self.sampled
        if step not in shared.rollouts:
            started = clock(self.accelerator.device)
            shared.rollouts[step] = super()._generate_single_turn(*args, **kwargs)
            shared.seconds[step] = clock(self.accelerator.device) - started
            self.sampled_itself = step
        return copy.deepcopy(shared.rollouts[step])


class _Canned:
    """A trainer that draws rollouts at random instead of sampling them."""

    completion: tuple[int, int]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        generator = torch.Generator().manual_seed(self.state.global_step)
        (mean, deviation), longest = self.completion, self.args.max_completion_length
        drawn = mean + deviation * torch.randn(len(prompt_ids), generator=generator)
        lengths = drawn.round().clamp(4, longest).int().tolist()
        low, high = len(models.IDS), self.model.config.text_config.vocab_size
        completions = [torch.randint(low, min(high, 500), (n,), generator=generator).tolist() for n in lengths]
        return completions, None


@contextmanager
def answers_of(task: Task) -> Iterator[None]:
    """Give made-up answers to the rollouts of a task without answers."""
    final_answer = cepo.trainer.cepo_trainer.final_answer
    cepo.trainer.cepo_trainer.final_answer = final_answer if task.has_answers else _answer_of
    try:
        yield
    finally:
        cepo.trainer.cepo_trainer.final_answer = final_answer


def make_trainer(
    task: Task, method: str, rule: str, *, steps: int, canned: bool, folder: str, sampled: Sampled
) -> GRPOTrainer:
    is_trl = method == "trl"
    base = _Timed if is_trl else CEPOTrainer
    bases = (_SharesRollouts, _Canned, base) if canned else (_SharesRollouts, base)
    trainer_class = type(base.__name__, bases, {"sampled": sampled, "completion": task.completion})
    options = {
        "max_steps": steps,
        "num_generations": 8,
        "learning_rate": 0.0,
        "optim": "sgd",  # holds no state
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
    if not is_trl:
        credit = {"evidence_schedule": "constant", "evidence_steps": steps}
        credit |= {"negative_reference": rule} if rule not in ("", WHOLE) else {}
        options |= {"method": method, **applicable_options(credit, method)}
        options["shared_prompt_update"] = "never" if rule == WHOLE else "auto"
    set_seed(0)
    args = (GRPOConfig if is_trl else CEPOConfig)(output_dir=folder, **options)
    trainer = trainer_class(
        task.fresh_model(),
        task.reward,
        args,
        task.dataset,
        processing_class=task.processor,
        peft_config=task.peft_config,
    )
    trainer._stopwatch.clock = partial(clock, trainer.accelerator.device)
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(
    tasks: list[Task],
    methods: list[Way],
    *,
    repeats: int,
    canned: bool,
    say: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """One row of results for each task, method and rule, TRL's trainer first. The first step of each is a warm-up."""
    results = []
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder, answers_of(task):
            results += _run_task(task, [("trl", ""), *methods], repeats, canned, folder)
        for row in results[-len(methods) - 1 :]:
            say(row)
    return results


def _run_task(task: Task, ways: list[Way], repeats: int, canned: bool, folder: str) -> list[dict[str, Any]]:
    kinds = {True: Sampled(), False: Sampled()}
    rounds: dict[Way, list[dict[str, Any]]] = {}
    on_gpu = torch.cuda.is_available() and not task.options["use_cpu"]
    for together in [[way] for way in ways] if on_gpu else [ways]:
        rounds |= _take_steps(task, together, repeats, canned, folder, kinds)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
    for step, rollouts in kinds[False].rollouts.items():
        assert kinds[True].rollouts.get(step, rollouts) == rollouts, "other rollouts were sampled"
    rows = []
    for way, steps in rounds.items():
        method, rule = way
        reference = rounds["trl", ""]
        ratios = [step["seconds"] / other["seconds"] for step, other in zip(steps, reference, strict=True)]
        rows.append(
            {
                "method": "grpo (TRL)" if method == "trl" else method,
                "rule": rule,
                "shape": task.name,
                "zero_variance": steps[0]["zero_variance"],
                "seconds": median([step["seconds"] for step in steps]),
                # Ratios of steps on the same rollouts in the same round.
                "ratio_to_trl_grpo": median(ratios),
                "ratios": ratios,
                "ratio_of_fastest": min(step["seconds"] for step in steps) / min(step["seconds"] for step in reference),
                "peak_memory": max(step["peak_memory"] for step in steps),
                "held_memory": steps[0]["held_memory"],
                **{f"{part}_seconds": median([step[part] for step in steps]) for part in PARTS},
            }
        )
    return rows


def _take_steps(
    task: Task, ways: list[Way], repeats: int, canned: bool, folder: str, kinds: dict[bool, Sampled]
) -> dict[Way, list[dict[str, Any]]]:
    """Seconds and bytes of the steps of trainers that take turns, after a first step of each."""
    trainers, turns = {}, {}
    shares = {way: way[0] != "trl" and way[1] != WHOLE for way in ways}
    for way in ways:
        name, sampled = f"{folder}/{'-'.join(way)}", kinds[shares[way]]
        trainers[way] = make_trainer(task, *way, steps=1 + repeats, canned=canned, folder=name, sampled=sampled)
    # Start after all are made: each new trainer resets accelerate's state, which all share.
    for way in ways:
        turns[way] = _Turns()
        turns[way].start(trainers[way])

    def one_step(way: Way) -> dict[str, Any]:
        trainer = trainers[way]
        before, step, device = dict(trainer.seconds), trainer.state.global_step, trainer.accelerator.device
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
        seconds, memory = seconds_and_memory(turns[way].step, device)
        parts = {part: trainer.seconds[part] - before[part] for part in PARTS}
        if getattr(trainer, "sampled_itself", None) != step:
            seconds += kinds[shares[way]].seconds[step]
            parts["generation"] += kinds[shares[way]].seconds[step]
        return {"seconds": seconds, "peak_memory": memory, "held_memory": held, **parts}

    for way in ways:
        one_step(way)
    rounds = in_random_order({way: partial(one_step, way) for way in ways}, repeats)
    for way in ways:
        turns[way].finish()
        (zero_variance,) = (entry["frac_reward_zero_std"] for entry in trainers[way].state.log_history)
        for step in rounds[way]:
            step["zero_variance"] = zero_variance
    return rounds
