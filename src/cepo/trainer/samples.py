"""Rollouts that a run saves for `cepo explain`, and pages of their credit (`credit_page_steps`)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..data.files import write_whole
from ..data.saved import rows_of, save_rows
from ..inspection.inspect import all_variants, inspect
from ..inspection.markdown import credit_markdown
from ..inspection.page import credit_page
from ..references.groups import Group
from ..scoring.pipeline import Pipeline
from ..scoring.requests import Prompt
from .batches import Batch
from .cepo_config import CEPOConfig
from .completion_batch import CompletionBatch

NUMBER_OF_GROUPS = 2


class Samples:
    """Saves rollouts, and writes pages of their credit, from the first generation batch of a step.

    Args:
        trainer: A `CEPOTrainer`.
        saves: Whether rollouts are saved, at every step.
    """

    def __init__(self, trainer: Any, *, saves: bool):
        self._trainer, self._saves = trainer, saves
        self._last_step: int | None = None

    def keep(self, completions: CompletionBatch, batch: Batch) -> None:
        """Save rollouts and write the page that are due at this step.

        Args:
            completions: Answers and verdicts of the batch.
            batch: TRL's generation batch.
        """
        trainer, args = self._trainer, self._trainer.args
        step, every = trainer.state.global_step, args.credit_page_steps
        draws = every > 0 and step % every == 0
        if step == self._last_step or not (draws or self._saves):
            return
        self._last_step = step
        groups, rows = completions.groups(batch)
        writes = trainer.accelerator.is_main_process
        if self._saves:
            before = trainer.accelerator.process_index * len(batch["advantages"]) // trainer.num_generations
            saved = gather_object(rows_of(groups, before))
            if writes:
                save_rows(args.output_dir, step, saved)
        if draws:
            # Groups with an advantage first.
            order = sorted(range(len(groups)), key=lambda i: not any(r.advantage for r in groups[i].local))
            drawn = order[:NUMBER_OF_GROUPS]
            with trainer._teachers.scoring_mode():
                written = write_credit_page(
                    [groups[i] for i in drawn],
                    trainer._prompts(batch, [rows[i] for i in drawn]),
                    pipeline=trainer._teachers.pipeline(trainer._encoder, batch, own_weights=True),
                    args=args,
                    step=step,
                    write=writes,
                )
            if written is not None:
                _log_page(trainer.callback_handler.callbacks, step, *written)


def _log_page(callbacks: Iterable[TrainerCallback], step: int, path: Path, markdown: str) -> None:
    """Log a page to W&B and Trackio, and its Markdown to TensorBoard, which shows no HTML."""
    for logger in callbacks:
        if isinstance(logger, WandbCallback) and logger._wandb is not None:
            html = logger._wandb.Html(path.read_text(encoding="utf-8"), inject=False)
            logger._wandb.log({"train/global_step": step, "credit": html})
        elif isinstance(logger, TrackioCallback):
            html = logger._trackio.Html(path.read_text(encoding="utf-8"), inject=False, caption=path.name)
            logger._trackio.log({"train/global_step": step, "credit": html})
        elif isinstance(logger, TensorBoardCallback) and logger.tb_writer is not None:
            logger.tb_writer.add_text("credit", f"{markdown}\n\nThe whole page: `{path}`", step)


def write_credit_page(
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    *,
    pipeline: Pipeline,
    args: CEPOConfig,
    step: int,
    write: bool,
) -> tuple[Path, str] | None:
    """Score groups under all methods, and write their page to `credit/step-00010.html` in the output directory.

    Returns its path, and the credit of the run's method as Markdown.

    Args:
        groups: Groups, or this process's part of them.
        prompts: Prompts of the groups.
        pipeline: Pipeline from groups to evidence.
        args: Options of the run.
        step: Optimizer step.
        write: Whether this process writes; the others join its forward passes and return None.
    """
    complete = all(len(group.local) == len(group.rollouts) for group in groups)
    # A page compares methods under one set of weights, whatever the teacher of the run is.
    given = {name: value for name, value in args.given.items() if not name.startswith("teacher")}
    variants = all_variants(given, columns=list(groups[0].row) if complete else None)
    inspected = inspect(groups, prompts, variants, pipeline=pipeline, step=step)
    if not write:
        return None
    own = [v for v in variants if (v.method, v.rule) == (args.method_spec, args.negative_reference)]
    selected = own[0] if own else variants[-1]
    title = f"Which tokens get the credit, step {step}"
    page = credit_page(
        inspected,
        title=title,
        about={
            "run": str(args.output_dir),
            "method": own[0].name if own else args.method,
            "lambda": f"{args.coefficient_at(step):.3g}",
            **({} if args.teacher in (None, "policy") else {"scored with": "the policy's weights"}),
        },
        variants=variants,
        selected=selected,
    )
    path = Path(args.output_dir) / "credit" / f"step-{step:05d}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    return path, credit_markdown(inspected, selected, title=title)
