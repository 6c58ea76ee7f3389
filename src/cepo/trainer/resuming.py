"""A trainer that comes back as if it had never left: what TRL's forgets between two generations, logs or epochs.

TRL keeps rollouts for `steps_per_generation` x `num_iterations` micro-batches and samples anew when it resumes within
these; numbers of the log to come are lost; and its data sampler begins with the order of the first epoch again.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import strip_images_from_messages

from .checkpoints import written_whole
from .layout import name_cpu_plainly

_logger = logging.getLogger(__name__)

# A file for each process. Tensors, numbers and names alone: it is loaded without running anything.
_FILE = "in_hand-{rank}.pt"


class ResumingTrainer(GRPOTrainer):
    """TRL's trainer with checkpoints that are whole, or marked as not."""

    def __init__(self, *args, **kwargs):
        self._order: Any = None  # of the training set
        self._resumed_from: str | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(_TakeUp(self))

    def _save_beside(self, folder: str) -> None:
        """Write what else belongs into a checkpoint."""

    def _load_beside(self, folder: str) -> None:
        """Read what `_save_beside` has written."""

    def _get_train_sampler(self, dataset=None):
        self._order = super()._get_train_sampler(dataset)
        return self._order

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with written_whole(self, folder):
            super()._save_checkpoint(model, trial)
            self._save_in_hand(folder)
            self._save_beside(str(folder))

    def _load_optimizer_and_scheduler(self, checkpoint):
        name_cpu_plainly(self.args)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_beside(checkpoint)
            self._resumed_from = checkpoint

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed at its end: TRL's would make a step more
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _save_in_hand(self, folder: Path) -> None:
        """Rollouts that are not used up, and numbers that are not logged yet, of this process."""
        args = self.args
        used_up = self._step % (args.steps_per_generation * self.num_iterations) == 0
        found = {
            "processes": args.world_size,
            "micro_batch": self._step,
            "rollouts": None if used_up else self._buffered_inputs,
            # TRL writes its table of them anew whenever it logs, also once more when training has ended.
            "completions": _plain(self._logs) if self.log_completions else None,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items() if values},
            "loss": self._tr_loss,
            "loss_logged": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }
        torch.save(found, folder / _FILE.format(rank=args.process_index))

    def take_up(self) -> None:
        """Go on with the order of the data, the rollouts and the numbers of the checkpoint that was resumed from."""
        checkpoint, self._resumed_from = self._resumed_from, None
        if checkpoint is None:
            return
        if getattr(self._order, "generator", None) is not None:
            for _ in range(math.floor(self.state.epoch + 1e-6)):  # each epoch's order is drawn after the one before
                torch.randperm(self._order.num_samples, generator=self._order.generator)
        path = Path(checkpoint) / _FILE.format(rank=self.args.process_index)
        if not path.is_file():
            return
        # Not accelerate's device, which `name_cpu_plainly` is there for.
        found = torch.load(path, map_location=self.args.device, weights_only=True)
        if found["processes"] != self.args.world_size:
            _logger.warning(
                "%s was written by %d processes, and this run has %d: rollouts that were left are sampled anew.",
                checkpoint,
                found["processes"],
                self.args.world_size,
            )
            return
        self._step, self._buffered_inputs = found["micro_batch"], found["rollouts"]
        for name, values in found["metrics"].items():
            self._metrics["train"][name] = values
        self._tr_loss = found["loss"]
        if not hasattr(self, "_initial_global_step"):  # newer versions of transformers take the mean of what they ran
            self._total_loss_scalar = found["loss_logged"]
        self._globalstep_last_logged = found["last_logged"]
        for name, kept in (found["completions"] or {}).items():
            if isinstance(kept, dict):
                for column, values in kept.items():
                    self._logs[name][column].extend(values)
            else:
                self._logs[name].extend(kept)


def _plain(logs: Mapping[str, Any]) -> dict[str, Any]:
    """What TRL writes into tables of completions, without images, in types that are loaded without running anything."""
    return {
        "prompt": [strip_images_from_messages(messages) for messages in logs["prompt"]],
        "completion": [strip_images_from_messages(messages) for messages in logs["completion"]],
        "advantages": list(logs["advantages"]),
        "rewards": {name: list(values) for name, values in logs["rewards"].items()},
        "extra": {name: [_plain_value(value) for value in values] for name, values in logs["extra"].items()},
    }


def _plain_value(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class _TakeUp(TrainerCallback):
    """Lets a trainer take up what it left, when all else is ready."""

    def __init__(self, trainer: ResumingTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._trainer.take_up()
