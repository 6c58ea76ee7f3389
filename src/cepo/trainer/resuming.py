"""A trainer that comes back as if it had never left: what TRL's forgets between two generations, logs or epochs.

TRL keeps rollouts for `steps_per_generation` x `num_iterations` micro-batches and samples anew when it resumes within
these; numbers of the log to come are lost; and its data sampler begins with the order of the first epoch again.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from trl import GRPOTrainer
from trl.trainer.utils import strip_images_from_messages

from .checkpoints import STATE_FILE, find_checkpoint, written_whole
from .resume_options import FILE, RunOptions, new_schedule, options_of, refuse_changed
from .sharding import name_cpu_plainly

_logger = logging.getLogger(__name__)

# A file for each process. Tensors, numbers and names alone: it is loaded without running anything.
_FILE = "rollout_buffer_{rank}.pt"


class ResumingTrainer(GRPOTrainer):
    """TRL's trainer with checkpoints that are whole, or marked as not."""

    #: Options of the run beside those of its configuration and model, to be kept in checkpoints and compared.
    more_options: Mapping[str, Any] = {}

    def __init__(self, *args, **kwargs):
        self._order: Any = None  # of the training set
        self._resumed_from: str | None = None
        self._checked: str | None = None  # the checkpoint whose options were compared
        self._new_schedule = False
        #: The step up to which a run trained whose options are not known; None: there was none.
        self.options_unknown_until: int | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(_TakeUp(self))

    @cached_property
    def _run_options(self) -> RunOptions:
        """As they are before training, which changes some."""
        return options_of(self, self.more_options)

    def check_resume(self, checkpoint: str) -> list[str]:
        """Compare the options of this run with those of a checkpoint that it resumes.

        Returns:
            What people should know: options that take effect in another way than they say, or are not compared.

        Raises:
            ValueError: Naming options that a resumed run cannot change.
        """
        self._checked = checkpoint
        saved, now = RunOptions.load(Path(checkpoint)), self._run_options
        if saved is None:
            refuse_changed(checkpoint, RunOptions(_known_options(Path(checkpoint)), {}), now)
            state = json.loads((Path(checkpoint) / STATE_FILE).read_text(encoding="utf-8"))
            self.options_unknown_until = state["global_step"]
            return [
                f"resume_from_checkpoint: {checkpoint} has no {FILE}, so options of this run other than learning_rate "
                "cannot be compared with those that it was trained with; its optimizer's constants stay in effect"
            ]
        refuse_changed(checkpoint, saved, now)
        self.options_unknown_until = saved.unknown_until
        schedule = new_schedule(saved, now)
        self._new_schedule = schedule is not None
        return [] if schedule is None else [schedule]

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train as TRL's trainer does, or resume with the options that the checkpoint was trained with.

        Raises:
            ValueError: If there is no such checkpoint, or options differ that a resumed run cannot change.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is not None and checkpoint != self._checked:
            for note in self.check_resume(checkpoint):
                if self.args.should_log:
                    _logger.warning(note)
        if self.args.should_save and self.args.save_strategy != "no":
            _ = self._run_options
        return super().train(checkpoint, *args, **kwargs)

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
            if self.args.should_save:
                replace(self._run_options, unknown_until=self.options_unknown_until).save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint):
        name_cpu_plainly(self.args)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_beside(checkpoint)
            self._resumed_from = checkpoint
            if self._new_schedule and isinstance(self.lr_scheduler, LambdaLR):
                self._follow_schedule(self.lr_scheduler)

    def _follow_schedule(self, scheduler: LambdaLR) -> None:
        """Take the rate of the next step from the schedule: the checkpoint has that of the old one, 0 at its end."""
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        scheduler._last_lr = [rate * factor(scheduler.last_epoch) for rate, factor in rates]
        for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate

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
            "layout": self._layout(),
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

    def _layout(self) -> list[int]:
        """Processes, and the micro-batches in which each has its rollouts: their size and number."""
        args = self.args
        return [args.world_size, args.per_device_train_batch_size, args.steps_per_generation]

    def restore(self) -> None:
        """Go on with the order of the data, the rollouts and the numbers of the checkpoint that was resumed from."""
        checkpoint, self._resumed_from = self._resumed_from, None
        if checkpoint is None:
            return
        # Until now the state has those of the checkpoint.
        self.state.compute_steps(self.args, self.state.max_steps)
        self.state.train_batch_size = self._train_batch_size
        if getattr(self._order, "generator", None) is not None:
            for _ in range(math.floor(self.state.epoch + 1e-6)):  # each epoch's order is drawn after the one before
                torch.randperm(self._order.num_samples, generator=self._order.generator)
        path = Path(checkpoint) / _FILE.format(rank=self.args.process_index)
        if not path.is_file():
            return
        # Not accelerate's device, which `name_cpu_plainly` is there for.
        found = torch.load(path, map_location=self.args.device, weights_only=True)
        layout = self._layout()
        written = found.get("layout", [found.get("processes"), *layout[1:]])
        if written == layout:
            self._step, self._buffered_inputs = found["micro_batch"], found["rollouts"]
        elif found["rollouts"] is not None:
            _logger.warning(
                "%s holds rollouts of %d processes in micro-batches of %d, and this run has %d in micro-batches of %d: "
                "they are sampled anew.",
                *(checkpoint, *written[:2], *layout[:2]),
            )
        if written[0] != layout[0]:  # numbers of a process
            return
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


def _known_options(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint without options says of them: the learning rate, in the state of its scheduler."""
    path = checkpoint / SCHEDULER_NAME
    rates = torch.load(path, weights_only=True).get("base_lrs") if path.is_file() else None
    return {"learning_rate": rates[0]} if rates else {}


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
        self._trainer.restore()
