"""Warnings during training: metrics that stay above one half, and uploads that failed in the background."""

import logging
from collections import Counter
from typing import Any

from transformers import TrainerCallback

from ..data.escape import one_line

_logger = logging.getLogger(__name__)

STEPS, SHARE = 3, 0.5
# For each metric: its meaning, the cause and the fix.
WARNINGS = {
    "cepo/fallback/no_incorrect_answer": (
        "rollouts with an advantage find no incorrect answer in their group, so that the method falls back. Either "
        "completions hold no extractable answer, or all extracted answers equal the correct one. Look at completions "
        "with log_completions, and set answer_extractor to the way they write answers"
    ),
    "completions/clipped_ratio": (
        "completions are cut off by max_completion_length, so that most hold no answer. Raise max_completion_length, "
        "or shorten the thinking (chat_template_kwargs)"
    ),
    "cepo/verdicts/missing": (
        "rollouts have no verdict: the reward function that decides correctness returned None, as trl's "
        "accuracy_reward does for a solution that it cannot parse. These rollouts are not trained on. Check the "
        "solutions, or use answer_reward or another function for reward_funcs"
    ),
}


class HealthWarnings(TrainerCallback):
    """Warns about a metric that was above `SHARE` in `STEPS` logs in a row."""

    def __init__(self) -> None:
        self._steps: Counter[str] = Counter()

    def on_log(self, args, state, control, logs=None, **kwargs):  # noqa: ARG002
        for name, meaning in WARNINGS.items():
            if logs is None or name not in logs or self._steps[name] >= STEPS:
                continue
            share = logs[name]
            self._steps[name] = self._steps[name] + 1 if share > SHARE else 0
            if self._steps[name] == STEPS and state.is_world_process_zero:
                _logger.warning("%s: %d times in a row, now %.0f %% of %s.", name, STEPS, 100 * share, meaning)


class FailedUploads(TrainerCallback):
    """Warns about a failed upload of a checkpoint, which happens in the background, when the next upload begins.

    Args:
        trainer: Trainer that pushes its checkpoints to the Hub.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer

    def on_push_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        jobs = getattr(getattr(self._trainer, "push_in_progress", None), "jobs", [])
        errors = [job.exception() for job in jobs if job.done() and not job.cancelled()]
        if any(errors):
            _logger.warning("a checkpoint was not pushed to the Hub: %s", one_line(str(next(filter(None, errors)))))
