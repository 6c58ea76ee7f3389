"""What loggers are given beside numbers: the page of credit and a table of completions, each in the logger's own form.

Transformers sends the numbers, to whatever `report_to` names. With `log_completions` TRL sends W&B and Trackio a table
of completions whenever it logs; then ours goes to the others alone. No logger that fails ends a run.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from transformers import TrainerCallback
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import GRPOTrainer
from trl.extras import profiling
from trl.trainer import grpo_trainer

from ..data.sampling import text_of_messages
from ..data.visible import one_line, visible
from ..inspection.tables import markdown_table
from ..references.extraction import text_of_completion

_logger = logging.getLogger(__name__)

# Those that come as extras of ours.
EXTRAS = ("tensorboard", "trackio", "wandb")
# Those to which TRL sends a table of completions.
_WITH_TABLE_OF_TRL = ("wandb", "trackio")
# TensorBoard reads a text whole, and shows it whole: so many rollouts, and so many characters of each text.
_ROWS, _CHARACTERS = 64, 2000
_REASON = 300  # characters of what a logger says went wrong


@dataclass(frozen=True)
class CreditPage:
    """A page of credit that was written.

    Attributes:
        step: The optimiser step.
        path: The file.
        html: What it holds.
        markdown: The credit of the run's own method alone, in short, for places that show no page.
    """

    step: int
    path: Path
    html: str
    markdown: str


def check_loggers(names: Collection[str]) -> None:
    """Refuse a logger that is not there, before anything costs time.

    Args:
        names: Of `report_to`.

    Raises:
        ValueError: If transformers knows no such logger.
        ImportError: If it is not installed, with what to install.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"report_to: there is no logger {name!r}; there are {', '.join(INTEGRATION_TO_CALLBACK)}")
        if name in EXTRAS and name not in get_available_reporting_integrations():
            raise ImportError(f"report_to: {name} is not installed: pip install 'cepo[{name}]'")


# A failing logger -----------------------------------------------------------------------------------------------------


class Losses:
    """Lets loggers fail without ending the run: says of each once what it was; those that never began are let be."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._off: set[str] = set()

    def are_off(self, name: str) -> bool:
        """Whether a logger could not even be started."""
        return name in self._off

    @contextmanager
    def of(self, name: str, *, starting: bool = False) -> Iterator[None]:
        """What fails in here is this logger's loss."""
        try:
            yield
        except Exception as error:
            if starting:
                self._off.add(name)
            if name not in self._said:
                self._said.add(name)
                rest = "gets nothing of this run" if starting else "misses what it was to be given; it is tried again"
                reason = one_line(f"{type(error).__name__}: {error}")[:_REASON]
                _logger.warning("report_to: %s failed, and %s. Training goes on. (%s)", name, rest, reason)

    def guard(self, callback: TrainerCallback, name: str) -> None:
        """Make all that transformers calls of a logger's callback such a loss."""
        for event in dir(TrainerCallback):
            own = getattr(type(callback), event)
            if event.startswith("on_") and own is not getattr(TrainerCallback, event):
                setattr(callback, event, self._guarded(getattr(callback, event), name, event == "on_train_begin"))

    def _guarded(self, method: Callable[..., Any], name: str, starting: bool) -> Callable[..., Any]:
        @functools.wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.are_off(name):
                return None
            with self.of(name, starting=starting):
                return method(*args, **kwargs)
            return None

        return guarded


class _InTrl:
    """A logger's module, as TRL uses it: what fails is its loss."""

    def __init__(self, module: Any, name: str, losses: Losses):
        self._module, self._name, self._losses = module, name, losses

    @property
    def run(self) -> Any:
        """W&B's run; None: there is none."""
        return None if self._losses.are_off(self._name) else self._module.run

    def Image(self, image: Any) -> Any:  # noqa: N802
        with self._losses.of(self._name):
            return self._module.Image(image)
        return None

    def Table(self, **content: Any) -> Any:  # noqa: N802
        with self._losses.of(self._name):
            # W&B refuses TRL's rows of conversations with images for their types, unless it is told not to.
            return self._module.Table(**content, allow_mixed_types=True)
        return None

    def log(self, logs: dict[str, Any], **options: Any) -> None:
        found = {key: value for key, value in logs.items() if value is not None}
        if found and not self._losses.are_off(self._name):
            with self._losses.of(self._name):
                self._module.log(found, **options)


@contextmanager
def _trls_own_guarded(losses: Losses) -> Iterator[None]:
    """What TRL sends past transformers: its tables of completions, and how long its parts take."""
    theirs = [
        (place, name, module)
        for place in (grpo_trainer, profiling)
        for name in _WITH_TABLE_OF_TRL
        if (module := getattr(place, name, None)) is not None
    ]
    for place, name, module in theirs:
        setattr(place, name, _InTrl(module, name, losses))
    try:
        yield
    finally:
        for place, name, module in theirs:
            setattr(place, name, module)


# Each logger's own form -----------------------------------------------------------------------------------------------


def completions_table(logs: dict[str, Any], step: int) -> pandas.DataFrame:
    """The rollouts that TRL keeps of the last generation, as text: prompt, completion, rewards, advantage.

    Args:
        logs: TRL's `_logs`.
        step: The optimiser step at which they were sampled.
    """
    prompts = [
        prompt if isinstance(prompt, str) else "\n".join(f"{role}: {text}" for role, text in text_of_messages(prompt))
        for prompt in logs["prompt"]
    ]
    return pandas.DataFrame(
        {
            "step": [step] * len(prompts),
            "prompt": list(map(visible, prompts)),
            "completion": [visible(text_of_completion(completion)) for completion in logs["completion"]],
            **{name: list(values) for name, values in logs["rewards"].items()},
            "advantage": list(logs["advantages"]),
        }
    )


def _to_tensorboard(callback: Any, page: CreditPage, table: pandas.DataFrame | None) -> None:
    """It has text alone: the credit in short, the page's place, the table as Markdown."""
    writer = callback.tb_writer
    writer.add_text("credit", f"{page.markdown}\n\nThe whole page: `{page.path}`", page.step)
    if table is not None:
        rows = [[_cell(value) for value in row] for row in table.head(_ROWS).itertuples(index=False)]
        writer.add_text("completions", markdown_table(list(table.columns), rows), page.step)
    writer.flush()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    text = str(value)
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} ..."


def _to_trackio(callback: Any, page: CreditPage, table: pandas.DataFrame | None) -> None:
    trackio = callback._trackio
    logs: dict[str, Any] = {"train/global_step": page.step}
    if table is not None:
        logs["completions"] = trackio.Table(dataframe=table)
    if hasattr(trackio, "Html"):
        logs["credit"] = trackio.Html(page.html, inject=False, caption=page.path.name)
    else:  # older ones
        logs["credit"] = trackio.Markdown(page.markdown)
    trackio.log(logs)


def _to_wandb(callback: Any, page: CreditPage, table: pandas.DataFrame | None) -> None:
    wandb = callback._wandb
    logs: dict[str, Any] = {"train/global_step": page.step, "credit": wandb.Html(page.html, inject=False)}
    if table is not None:
        logs["completions"] = wandb.Table(dataframe=table)
    wandb.log(logs)


_SEND: dict[str, Callable[[Any, CreditPage, pandas.DataFrame | None], None]] = {
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
    "wandb": _to_wandb,
}


# The trainer ----------------------------------------------------------------------------------------------------------


class LoggedTrainer(GRPOTrainer):
    """TRL's trainer, whose loggers are given pages and tables, and end no run."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._losses = Losses()
        super().__init__(*args, **kwargs)
        for name, callback in self._loggers():
            self._losses.guard(callback, name)

    def _loggers(self) -> list[tuple[str, TrainerCallback]]:
        """The loggers that are at work, by the names that `report_to` takes."""
        return [
            (name, callback)
            for callback in self.callback_handler.callbacks
            for name, kind in INTEGRATION_TO_CALLBACK.items()
            if isinstance(callback, kind)
        ]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with _trls_own_guarded(self._losses):
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with _trls_own_guarded(self._losses):
            return super().evaluate(*args, **kwargs)

    def _send_page(self, page: CreditPage | None) -> None:
        """Give the loggers a page, and the completions of its step; None: another process has drawn it."""
        if page is None:
            return
        for name, callback in self._loggers():
            if name not in _SEND or self._losses.are_off(name):
                continue
            has_table = self.log_completions and name in _WITH_TABLE_OF_TRL and name in self.args.report_to
            with self._losses.of(name):
                _SEND[name](callback, page, None if has_table else completions_table(self._logs, page.step))
