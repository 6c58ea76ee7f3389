"""Held-out accuracy before, during and after training."""

from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from rich.text import Text
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.accuracy import Evaluation
from ..data.evaluation import Share, evaluate
from ..data.sampling import Sampling
from ..trainer.arguments import TrainArguments
from ..trainer.cepo_trainer import CEPOTrainer
from ..trainer.sharding import whole_policy


class AccuracyCallback(TrainerCallback, ExportableState):
    """Measures accuracy before training and every `accuracy_every` steps; results travel in checkpoints.

    Args:
        trainer: The trainer, with policy and verifier.
        script_args: Numbers of problems and samples, and `accuracy_every`.
        held_out: The held-out problems; None: accuracy is not measured.
        console: Prints the results.

    Attributes:
        before, after: ``greedy`` and, if sampled, ``sampled`` results as `Evaluation.as_dict`; None: not measured.
        curve: ``step`` and greedy ``accuracy``, ``low``, ``high`` and ``problems`` over training.
    """

    def __init__(self, trainer: CEPOTrainer, script_args: TrainArguments, held_out: Any, console: Console):
        self._trainer, self._script_args, self._held_out, self._console = trainer, script_args, held_out, console
        self.before: dict[str, Any] | None = None
        self.after: dict[str, Any] | None = None
        self.curve: list[dict[str, Any]] = []

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"before": self.before, "curve": self.curve}}

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["attributes"]
        if state.global_step:
            self.before, self.curve = saved["before"], list(saved["curve"])
        elif self._held_out is None:
            self._console.print("No held-out problems: accuracy is not measured.")
        else:
            self.before = self._measure("before training")

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        every = self._script_args.accuracy_every if self._held_out is not None else 0
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            self._greedy(f"at step {state.global_step}")

    def measure_after(self) -> None:
        """Measure accuracy after training."""
        if self._held_out is not None:
            self.after = self._measure("after training")

    def _measure(self, when: str) -> dict[str, Any]:
        greedy, sampled, script_args = self._greedy(when), None, self._script_args
        if script_args.eval_samples:
            problems = self._held_out.select(range(min(script_args.eval_sampled_problems, len(self._held_out))))
            sampled = self._evaluate(when, problems, self._trainer.temperature, script_args.eval_samples)
            parts = [str(sampled.accuracy), sampled.without_verdict, sampled.cut_off]
            if sampled.samples > 1:
                parts.append(f"pass@{sampled.samples} {sampled.pass_at(sampled.samples)}")
            if entropy := sampled.content_entropy or sampled.entropy:
                parts.append(f"entropy{' of content tokens' if sampled.content_entropy else ''} {entropy} nats")
            self._console.print(f"  sampled, {len(problems)} problems: {', '.join(filter(None, parts))}")
        return {"greedy": greedy.as_dict(), "sampled": sampled and sampled.as_dict()}

    def _greedy(self, when: str) -> Evaluation:
        result = self._evaluate(when, self._held_out, temperature=0.0, samples=1)
        counts = "".join(f", {text}" for text in (result.without_verdict, result.cut_off) if text)
        head = f"held-out accuracy {when}, greedy: "
        tail = f" of {len(self._held_out)} problems{counts}"
        self._console.print(Text.assemble(head, (str(result.accuracy), "bold"), tail))
        self.curve.append({"step": self._trainer.state.global_step, **result.accuracy.as_dict()})
        return result

    def _evaluate(self, when: str, problems: Any, temperature: float, samples: int) -> Evaluation:
        trainer, accelerator = self._trainer, self._trainer.accelerator
        share = Share(accelerator.process_index, accelerator.num_processes, gather_object)
        with self._console.status(f"accuracy {when}"), whole_policy(trainer) as policy:
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
                    self._script_args.eval_batch_size,
                ),
                samples=samples,
                seed=trainer.args.seed,
                reward_func=trainer.reward_funcs[trainer._correctness_index],
                threshold=trainer.args.correctness_threshold,
                share=share,
            )
