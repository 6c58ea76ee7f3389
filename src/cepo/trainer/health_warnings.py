"""Trouble that lasts: a share that stays above a half for some steps is said once, with why and what to do."""

import logging
from collections import Counter

from transformers import TrainerCallback

_logger = logging.getLogger(__name__)

STEPS, SHARE = 3, 0.5
# What is logged, and what it means where it stays high.
TROUBLES: dict[str, str] = {
    "cepo/fallback/no_incorrect_answer": (
        "rollouts with an advantage have no wrong answer in their group that could be told, so that the method does "
        "without r-. Either answers are not found in completions, or those found equal the right one. Look at some "
        "with log_completions, and say with answer_extractor how answers are written"
    ),
    "completions/clipped_ratio": (
        "completions are cut off by max_completion_length before they end, so that most hold no answer. Raise "
        "max_completion_length, or shorten the thinking (chat_template_kwargs)"
    ),
    "cepo/verdicts/missing": (
        "rollouts have no verdict: the reward function that decides what is right returned None, as trl's "
        "accuracy_reward does where it cannot read the solution. Nothing is learned from these. Look at the solutions, "
        "or take answer_reward, or another function, for reward_funcs"
    ),
}


class HealthWarnings(TrainerCallback):
    """Watches what is logged."""

    def __init__(self) -> None:
        self._steps: Counter[str] = Counter()

    def on_log(self, args, state, control, logs=None, **kwargs):  # noqa: ARG002
        for name, meaning in TROUBLES.items():
            share = (logs or {}).get(name)
            if share is None:
                continue
            if self._steps[name] >= STEPS:  # has been said
                continue
            self._steps[name] = self._steps[name] + 1 if float(share) > SHARE else 0
            if self._steps[name] == STEPS and state.is_world_process_zero:
                _logger.warning("%s: %d times in a row, now %.0f %% of %s.", name, STEPS, 100 * float(share), meaning)
