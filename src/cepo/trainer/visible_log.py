"""TRL's trainer where what models wrote, and what data sets hold, may be anything."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from ..data.images import broken_images_named
from ..data.visible import visible_within

Aside = Callable[[], AbstractContextManager[Any]]


@contextmanager
def printed_visibly(aside: Aside = nullcontext) -> Iterator[None]:
    """TRL's table of prompts and completions, with visible text: it takes control characters as they come.

    What it saves and gives to loggers is not touched.

    Args:
        aside: Entered while it is printed, for it is written past whatever else stands on the terminal.
    """
    theirs = grpo_trainer.print_prompt_completions_sample

    def visibly(prompts: Any, completions: Any, *rest: Any, extra: Any = None) -> None:
        with aside():
            theirs(visible_within(prompts), visible_within(completions), *rest, extra=visible_within(extra))

    grpo_trainer.print_prompt_completions_sample = visibly
    try:
        yield
    finally:
        grpo_trainer.print_prompt_completions_sample = theirs


class VisibleTrainer(GRPOTrainer):
    """TRL's trainer, whose terminal no completion can write to but as text, and which names the row it cannot read."""

    train_dataset: Any
    #: See `printed_visibly`.
    aside: Aside = nullcontext

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with broken_images_named(self.train_dataset, "the training set"):
            return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        with printed_visibly(self.aside):
            super().log(logs, start_time)
