"""A trainer whose resumed runs are bit-identical to uninterrupted ones.

TRL uses rollouts for `steps_per_generation` x `num_iterations` micro-batches. When it resumes among these, it samples
anew, loses the metrics that are not logged yet, and starts the data sampler with the order of the first epoch.
"""

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import strip_images_from_messages

from .checkpoints import find_checkpoint, whole_checkpoint
from .patches import name_cpu_without_index
from .resume_options import RunOptions, new_schedule, options_of, refuse_changed

_logger = logging.getLogger(__name__)

# One file per process, of tensors, numbers and strings, so that it is loaded with weights_only.
_BUFFER = "rollout_buffer_{rank}.pt"


class ResumingTrainer(GRPOTrainer):
    """GRPOTrainer with complete checkpoints: options, rollout buffer, metrics and the order of the data."""

    #: Options of the run beside those of its configuration and model, compared with a checkpoint's.
    more_options: Mapping[str, Any] = {}

    def __init__(self, *args, **kwargs):
        self._sampler: Any = None
        self._resumed_from: str | None = None
        self._checked: str | None = None  # the checkpoint whose options were compared
        self._has_new_schedule = False
        super().__init__(*args, **kwargs)
        self.add_callback(_Restore(self))

    @cached_property
    def _run_options(self) -> RunOptions:
        """Options before training, which changes some."""
        return options_of(self, self.more_options)

    def check_resume(self, checkpoint: str) -> list[str]:
        """Compare the options of this run with those of a checkpoint.

        Returns:
            Notes for the user on options that act differently after resuming.

        Raises:
            ValueError: If the checkpoint has no options, or naming options that must not change.
        """
        self._checked = checkpoint
        saved, now = RunOptions.load(Path(checkpoint)), self._run_options
        refuse_changed(checkpoint, saved, now)
        note = new_schedule(saved, now)
        self._has_new_schedule = note is not None
        return [] if note is None else [note]

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train as GRPOTrainer does, after comparing the options with those of a resumed checkpoint.

        Raises:
            ValueError: If there is no such checkpoint, or options differ that must not change.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is not None and checkpoint != self._checked:
            for note in self.check_resume(checkpoint):
                if self.args.should_log:
                    _logger.warning(note)
        if self.args.should_save and self.args.save_strategy != "no":
            _ = self._run_options
        return super().train(checkpoint, *args, **kwargs)

    def _save_extra(self, folder: str) -> None:
        """Write further files into a checkpoint, on all processes."""

    def _load_extra(self, folder: str) -> None:
        """Load the files of `_save_extra`."""

    def _get_train_sampler(self, dataset=None):
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with whole_checkpoint(self, folder):
            super()._save_checkpoint(model, trial)
            torch.save(self._buffer(), folder / _BUFFER.format(rank=self.args.process_index))
            self._save_extra(str(folder))
            if self.args.should_save:
                self._run_options.save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint):
        name_cpu_without_index(self.args)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._load_extra(checkpoint)
        self._resumed_from = checkpoint
        scheduler = self.lr_scheduler
        if self._has_new_schedule and isinstance(scheduler, LambdaLR):
            # The checkpoint holds the next rate of the old schedule, which is 0 at its end.
            rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            scheduler._last_lr = [rate * factor(scheduler.last_epoch) for rate, factor in rates]
            for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed at the end; transformers would do another step
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _layout(self) -> list[int]:
        """Number of processes, and size and number of the micro-batches that each one buffers."""
        args = self.args
        return [args.world_size, args.per_device_train_batch_size, args.steps_per_generation]

    def _buffer(self) -> dict[str, Any]:
        """This process's rollouts for later micro-batches, and its metrics that are not logged yet."""
        used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        return {
            "layout": self._layout(),
            "micro_batch": self._step,
            "rollouts": None if used_up else self._buffered_inputs,
            # TRL writes its table of completions again with every log, also after training.
            "completions": _plain(self._logs) if self.log_completions else None,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items() if values},
            "loss": self._tr_loss,
            "loss_logged": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }

    def restore(self) -> None:
        """Restore data order, rollouts and metrics of the checkpoint that training resumes from."""
        checkpoint, self._resumed_from = self._resumed_from, None
        if checkpoint is None:
            return
        # transformers has set the state's intervals and batch size to the checkpoint's.
        self.state.compute_steps(self.args, self.state.max_steps)
        self.state.train_batch_size = self._train_batch_size
        if getattr(self._sampler, "generator", None) is not None:
            for _ in range(math.floor(self.state.epoch + 1e-6)):  # one draw per finished epoch
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)
        path = Path(checkpoint) / _BUFFER.format(rank=self.args.process_index)
        if not path.is_file():
            return
        saved = torch.load(path, map_location=self.args.device, weights_only=True)
        layout, written = self._layout(), saved["layout"]
        if written == layout:
            self._step, self._buffered_inputs = saved["micro_batch"], saved["rollouts"]
        elif saved["rollouts"] is not None:
            _logger.warning(
                "%s holds rollouts of %d processes in micro-batches of %d, and this run has %d in micro-batches of %d: "
                "they are sampled anew.",
                *(checkpoint, *written[:2], *layout[:2]),
            )
        if written[0] != layout[0]:  # metrics are per process
            return
        for name, values in saved["metrics"].items():
            self._metrics["train"][name] = values
        self._tr_loss = saved["loss"]
        if not hasattr(self, "_initial_global_step"):  # newer versions of transformers average since the last start
            self._total_loss_scalar = saved["loss_logged"]
        self._globalstep_last_logged = saved["last_logged"]
        for name, column in (saved["completions"] or {}).items():
            if isinstance(column, dict):
                for key, values in column.items():
                    self._logs[name][key].extend(values)
            else:
                self._logs[name].extend(column)


class _Restore(TrainerCallback):
    """Restores a trainer when training begins."""

    def __init__(self, trainer: ResumingTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._trainer.restore()


def _plain(logs: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's table of completions without images, in types that torch.load takes with weights_only."""

    def plain(value: Any) -> Any:
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

    return {
        **{name: [strip_images_from_messages(one) for one in logs[name]] for name in ("prompt", "completion")},
        "advantages": list(logs["advantages"]),
        "rewards": {name: list(values) for name, values in logs["rewards"].items()},
        "extra": {name: [plain(value) for value in values] for name, values in logs["extra"].items()},
    }
