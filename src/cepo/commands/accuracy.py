"""Accuracy on held-out problems before, while and after `cepo train` trains."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from rich.text import Text
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.accuracy import Accuracy, Evaluation
from ..data.evaluation import Share, evaluate
from ..data.sampling import Sampling
from ..trainer.arguments import TrainArguments
from ..trainer.cepo_trainer import CEPOTrainer
from ..trainer.checkpoints import STATE_FILE
from ..trainer.sharding import whole_policy


@dataclass(frozen=True)
class Measured:
    """What was found of a policy before or after training: greedy answers, and, unless switched off, sampled ones."""

    greedy: Evaluation
    sampled: Evaluation | None

    def as_dict(self) -> dict[str, Any]:
        return {"greedy": self.greedy.as_dict(), "sampled": self.sampled and self.sampled.as_dict()}


@dataclass(frozen=True)
class Measure:
    """Asks the policy the held-out problems (None: there are none)."""

    trainer: CEPOTrainer
    script_args: TrainArguments
    held_out: Any
    console: Console

    def __call__(self, when: str) -> Measured | None:
        """All there is to measure, before or after training; None where it cannot be measured."""
        if self.held_out is None:
            if when == "before training" and self.trainer.accelerator.is_main_process:
                self.console.print("No held-out problems: accuracy before and after is not measured.")
            return None
        greedy = self._ask(f"greedy answers {when}", self.held_out, temperature=0.0, samples=1)
        self._say(when, greedy, f" of {len(self.held_out)} problems")
        sampled = None
        if self.script_args.eval_samples > 0:
            # A greedy answer tells one thing of a problem, several samples tell more: fewer problems do.
            some = self.held_out.select(range(min(self.script_args.eval_sampled_problems, len(self.held_out))))
            sampled = self._ask(
                f"sampled answers {when}",
                some,
                temperature=self.trainer.temperature,
                samples=self.script_args.eval_samples,
            )
            parts = [f"{sampled.accuracy}{_beside(sampled.without_verdict)}{_beside(sampled.cut_off)}"]
            if sampled.samples > 1:
                parts.append(f"pass@{sampled.samples} {sampled.pass_at(sampled.samples)}")
            if entropy := sampled.content_entropy or sampled.entropy:
                parts.append(f"entropy{'' if sampled.content_entropy is None else ' at content'} {entropy} nats")
            self.console.print(f"  sampled, {len(some)} problems: {', '.join(parts)}", highlight=False)
        return Measured(greedy, sampled)

    def greedy(self, when: str) -> Accuracy:
        """Accuracy of greedy answers while training goes on."""
        found = self._ask(f"greedy answers {when}", self.held_out, temperature=0.0, samples=1)
        self._say(when, found)
        return found.accuracy

    def _say(self, when: str, greedy: Evaluation, of: str = "") -> None:
        accuracy = (str(greedy.accuracy), "bold")
        beside = f"{of}{_beside(greedy.without_verdict)}{_beside(greedy.cut_off)}"
        self.console.print(Text.assemble(f"held-out accuracy {when}, greedy: ", accuracy, beside))

    def _ask(self, doing: str, problems: Any, *, temperature: float, samples: int) -> Evaluation:
        trainer = self.trainer
        accelerator = trainer.accelerator
        share = Share(accelerator.process_index, accelerator.num_processes, gather_object)
        with self.console.status(doing), whole_policy(trainer) as policy:
            return evaluate(
                policy,
                trainer.processing_class,
                problems,
                Sampling(
                    trainer.max_completion_length,
                    temperature,
                    trainer.top_p,
                    trainer.top_k,
                    trainer.chat_template_kwargs,
                    self.script_args.eval_batch_size,
                ),
                samples=samples,
                seed=trainer.args.seed,
                reward_func=trainer.reward_funcs[trainer._correctness_index],
                threshold=trainer.args.correctness_threshold,
                share=share,
            )


def _beside(text: str) -> str:
    return f" ({text})" if text else ""


class BeforeTraining(TrainerCallback, ExportableState):
    """What there was before the first step. It travels in checkpoints, and is not measured again.

    Args:
        measure: Measures it.
        checkpoint: That the run goes on from, if any.
    """

    def __init__(self, measure: Measure, checkpoint: str | None):
        self._measure = measure
        self._found: dict[str, Any] | None = None
        self._asked = False
        if checkpoint is not None:
            callbacks = json.loads((Path(checkpoint) / STATE_FILE).read_text(encoding="utf-8"))["stateful_callbacks"]
            self._found = callbacks.get(type(self).__name__, {}).get("attributes")

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"args": {}, "attributes": self._found or {}}

    def measure(self) -> None:
        """Ask now, unless that is known, or there was nothing to ask."""
        if not self._found and not self._asked:
            self._asked = True
            found = self._measure("before training")
            if found is not None:
                self._found = {"measured": found.as_dict(), "greedy": _written(found.greedy.accuracy)}

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        if state.global_step == 0:  # later the policy is another
            self.measure()
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    @property
    def measured(self) -> dict[str, Any] | None:
        """As `Measured.as_dict`."""
        return self._found["measured"] if self._found else None

    @property
    def greedy(self) -> Accuracy | None:
        """Of greedy answers."""
        return _read(self._found["greedy"]) if self._found else None


class AccuracyCurve(TrainerCallback, ExportableState):
    """Measures held-out accuracy every so many steps. What it found travels in checkpoints.

    Args:
        every: Optimiser steps; 0: never.
        measure: Measures it; its argument says when, for people.
    """

    def __init__(self, every: int, measure: Callable[[str], Accuracy]):
        self.every, self.measure = every, measure
        self.points: list[tuple[int, Accuracy]] = []

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        points = [{"step": step, **_written(found)} for step, found in self.points]
        return {"args": {}, "attributes": {"points": points}}

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        name = type(self).__name__
        saved = state.stateful_callbacks.setdefault(name, self.state())
        if state.global_step and not self.points:
            self.points = [(point["step"], _read(point)) for point in saved["attributes"]["points"]]

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        # The last step is measured when training has ended.
        if self.every and state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self.points.append((state.global_step, self.measure(f"at step {state.global_step}")))


def _written(accuracy: Accuracy) -> dict[str, Any]:
    """For a checkpoint."""
    return {"values": accuracy.values, "samples": accuracy.samples}


def _read(written: Any) -> Accuracy:
    return Accuracy(tuple(written["values"]), written["samples"])
