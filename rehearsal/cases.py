"""Training runs that are rehearsed: methods, text and images, and options that run other code on a GPU."""

import logging
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tests.support.tiny_models import as_text, save_text_model
from tests.support.training import half_right, logged, make
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer
from trl.kernels import chunked_divergence, chunked_logprob

import cepo.trainer.cepo_trainer
from cepo import CEPOTrainer, load_figures, policy_path
from cepo.methods.registry import METHODS
from rehearsal.device import Heard, SimulatedGPU, label_phases

NEVER = {"shared_prompt_update": "never", "shared_prompt": "never"}
BF16 = {"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}
EMA = {"teacher": "ema", "teacher_ema_decay": 0.5}
ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "never": NEVER,
    "ema": EMA,
    "lora": {"lora": True},
    "lora-ema": {"lora": True, **EMA},
    "checkpointing": {"gradient_checkpointing": True},
    "autocast": {"bf16": True},
    "bf16": BF16,
    "bf16-checkpointing-lora": {"lora": True, "gradient_checkpointing": True, **BF16},
    "accumulated": ACCUMULATED,
    "iterations": {"num_iterations": 2, "beta": 0.1},
}
# Largest host waits of a step as a multiple of TRL's.
WAITS = 1.3


@dataclass(frozen=True)
class Case:
    """A run of two steps.

    Attributes:
        name: Method or `trl`, options, and `text` or `vision`.
        options: Options of the trainer.
        baseline: TRL's run with as many tokens, whose host waits are the yardstick; empty: no comparison.
    """

    name: str
    options: dict[str, Any]
    baseline: str

    @property
    def model(self) -> str:
        return self.name.rpartition("-")[2]

    @property
    def trainer_class(self) -> type:
        return GRPOTrainer if self.name.startswith("trl") else CEPOTrainer

    @property
    def half_precision(self) -> bool:
        return bool(self.options.get("bf16"))


@dataclass
class Outcome:
    """What a run gave.

    Attributes:
        values: Loss, gradient norm and evidence of each step.
        said: Warnings of cepo.
        waits: Host waits of the last step, by "phase | operation | place"; the first step has trials.
        refused: Operations that CUDA refuses.
        kernels: Operators with a kernel.
    """

    values: dict[str, list[float]]
    said: list[str]
    waits: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    kernels: int = 0

    @property
    def phases(self) -> dict[str, int]:
        """Host waits of the last step, by phase."""
        totals: Counter[str] = Counter()
        for place, number in self.waits.items():
            totals[place.partition(" | ")[0]] += number
        return dict(totals)


def all_cases() -> dict[str, Case]:
    """The whole matrix, by name."""
    found = []
    for model in ("text", "vision"):
        for method in ("trl", *METHODS):
            options = {} if method == "trl" else {"method": method}
            if method == "distilled_rl":
                options["teacher_model_name_or_path"] = "the policy"
            found.append(Case(f"{method}-{model}", options, f"trl-{model}"))
        found.append(Case(f"trl-accumulated-{model}", ACCUMULATED, f"trl-accumulated-{model}"))
        for name, options in OPTIONS.items():
            baseline = f"trl-accumulated-{model}" if name == "accumulated" else f"trl-{model}"
            if (name, model) == ("never", "vision"):
                baseline = ""  # each scoring pass runs the vision tower, in which the host waits
            found.append(Case(f"cepo-{name}-{model}", {"method": "cepo", **options}, baseline))
        found.append(Case(f"sdpo-top-k-{model}", {"method": "sdpo", "divergence": "top_k"}, f"trl-{model}"))
        found.append(Case(f"opsd-sampled-{model}", {"method": "opsd", "divergence": "sampled"}, f"trl-{model}"))
    return {case.name: case for case in found}


class Rehearsal:
    """Runs cases on the simulated GPU and, with the same rollouts, on the CPU."""

    def __init__(self) -> None:
        # TRL's PyTorch code in place of its Triton kernels; its other branches for GPUs are taken.
        chunked_logprob._use_triton = chunked_divergence._use_triton = lambda device: False
        cepo.trainer.cepo_trainer.final_answer = lambda text, extractor: str(len(text))
        figures = load_figures("train", 12)
        text = figures.map(as_text).remove_columns("image")
        self._folder = tempfile.TemporaryDirectory()
        path = save_text_model(Path(self._folder.name) / "text")
        self._tasks = {"text": (text, path), "vision": (figures, policy_path())}

    def run(self, case: Case) -> tuple[Outcome, Outcome]:
        """The outcomes on the simulated GPU and on the CPU."""
        rollouts: list[Any] = []
        gpu = SimulatedGPU()
        with gpu:
            on_gpu = self._train(case, rollouts, gpu)
        return on_gpu, self._train(case, rollouts, None)

    def _train(self, case: Case, rollouts: list[Any], gpu: SimulatedGPU | None) -> Outcome:
        """Train; the run on the GPU samples and adds to `rollouts`, the other takes these."""
        base = case.trainer_class

        class Trainer(base):
            def _generate_single_turn(self, *args, **kwargs):
                if gpu is None:
                    return rollouts.pop(0)
                found = super()._generate_single_turn(*args, **kwargs)
                rollouts.append(found)
                return found

        Trainer.__name__ = base.__name__  # TRL names its model card by it
        if gpu is not None:
            label_phases(gpu, Trainer)
        dataset, path = self._tasks[case.model]
        options = {"use_cpu": gpu is None, "log_level": "error", **case.options}
        adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if options.pop("lora", False) else None
        if options.get("teacher_model_name_or_path"):
            options["teacher_model_name_or_path"] = path
        heard = Heard()
        logging.getLogger("cepo").addHandler(heard)
        try:
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(0)
                trainer = make(Path(folder), dataset, path, half_right, Trainer, adapters, **options)
                trainer.remove_callback(PrinterCallback)
                counts = _Waits(gpu)
                trainer.add_callback(counts)
                trainer.train()
        finally:
            logging.getLogger("cepo").removeHandler(heard)
        devices = {parameter.device.type for parameter in trainer.model.parameters()}
        assert devices == {"cpu" if gpu is None else "cuda"}, f"the model is on {devices}"
        names = ("loss", "grad_norm", "cepo/evidence/correct_mean", "cepo/evidence/incorrect_mean")
        outcome = Outcome({name: logged(trainer, name) for name in names}, heard.lines)
        if gpu is not None:
            outcome.waits, outcome.kernels = counts.of_step, gpu.kernels.total()
            outcome.refused = gpu.refused
        return outcome


class _Waits(TrainerCallback):
    """Host waits of the last step."""

    def __init__(self, gpu: SimulatedGPU | None):
        self._gpu, self._before, self.of_step = gpu, Counter(), {}

    def on_step_begin(self, *args, **kwargs):
        self._before = Counter() if self._gpu is None else self._gpu.waits.copy()

    def on_step_end(self, *args, **kwargs):
        if self._gpu is not None:
            found = self._gpu.waits - self._before
            self.of_step = {" | ".join(key): number for key, number in found.most_common()}


def faults(case: Case, on_gpu: Outcome, on_cpu: Outcome, baseline: Outcome | None) -> list[str]:
    """Why a case fails; empty if it passes."""
    found = [f"refused by CUDA: {line}" for line in on_gpu.refused]
    found += [f"unexpected warning: {line}" for line in on_gpu.said]
    # In bfloat16 the step before the first update: Adam turns the rounding of small gradients into whole steps.
    tolerance, last = (0.05, 1) if case.half_precision else (1e-3, None)
    for name, values in on_gpu.values.items():
        for step, (a, b) in enumerate(list(zip(values, on_cpu.values[name], strict=True))[:last], 1):
            if a != b and (None in (a, b) or not abs(a - b) <= tolerance * max(0.1, abs(b))):
                found.append(f"{name} of step {step}: {a} on the GPU, {b} on the CPU")
    if baseline is not None:
        waits, of_trl = sum(on_gpu.waits.values()), sum(baseline.waits.values())
        if waits > WAITS * of_trl:
            found.append(f"the host waits {waits} times in a step, {waits / of_trl:.2f} times as often as TRL's")
    return found
