"""The page of credit that a training run writes every `credit_page_steps` steps, and sends to its loggers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_callback import CallbackHandler

from ..data.files import write_whole
from ..inspection.inspect import all_variants, inspect
from ..inspection.markdown import credit_markdown
from ..inspection.page import credit_page
from ..references.groups import Group
from ..scoring.pipeline import Pipeline
from ..scoring.requests import Prompt
from .cepo_config import CEPOConfig

NUMBER_OF_GROUPS = 2


@dataclass(frozen=True)
class CreditPage:
    """A page of credit that was written.

    Attributes:
        step: The optimiser step.
        path: The file.
        html: Its content.
        markdown: The credit of the run's own method in short, for TensorBoard, which shows no HTML.
    """

    step: int
    path: Path
    html: str
    markdown: str


class CreditPageLogger(TrainerCallback):
    """Sends `page`, where there is a new one, to W&B, Trackio and TensorBoard at the end of the step.

    Args:
        handler: The trainer's, whose callbacks are the loggers that `report_to` names.
    """

    def __init__(self, handler: CallbackHandler):
        self._handler = handler
        self.page: CreditPage | None = None

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        page, self.page = self.page, None
        if page is None:
            return
        for logger in self._handler.callbacks:
            if isinstance(logger, WandbCallback) and logger._wandb is not None:
                html = logger._wandb.Html(page.html, inject=False)
                logger._wandb.log({"train/global_step": page.step, "credit": html})
            elif isinstance(logger, TrackioCallback):
                html = logger._trackio.Html(page.html, inject=False, caption=page.path.name)
                logger._trackio.log({"train/global_step": page.step, "credit": html})
            elif isinstance(logger, TensorBoardCallback) and logger.tb_writer is not None:
                text = f"{page.markdown}\n\nThe whole page: `{page.path}`"
                logger.tb_writer.add_text("credit", text, page.step)


def write_credit_page(
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    *,
    pipeline: Pipeline,
    args: CEPOConfig,
    step: int,
    write: bool,
) -> CreditPage | None:
    """Read the groups under all methods and write their page to ``credit/step-00010.html`` in the output directory.

    None where nothing was to be written.

    Args:
        groups: The groups, or this process's part of them.
        prompts: Their prompts.
        pipeline: From groups to evidence.
        args: The run's options.
        step: The optimiser step.
        write: Whether to write; the processes that do not still make the passes.
    """
    whole = all(len(group.local) == len(group.rollouts) for group in groups)
    # Whoever teaches in training: P_S, P_T+ and P_T- of a page are of the same weights.
    given = {name: value for name, value in args.given.items() if not name.startswith("teacher")}
    variants = all_variants(given, columns=list(groups[0].row) if whole else None)
    selected = next(
        (
            variant
            for variant in variants
            if (variant.method, variant.rule) == (args.method_spec, args.negative_reference)
        ),
        None,
    )
    inspected = inspect(groups, prompts, variants, pipeline=pipeline, step=step)
    if not write:
        return None
    first = variants[-1] if selected is None else selected
    title = f"Which tokens get the credit, step {step}"
    page = credit_page(
        inspected,
        title=title,
        about={
            "run": str(args.output_dir),
            "method": args.method if selected is None else selected.name,
            "lambda": f"{args.coefficient_at(step):.3g}",
            **({} if args.teacher in (None, "policy") else {"read with": "the policy's own weights"}),
        },
        variants=variants,
        selected=first,
    )
    path = Path(args.output_dir) / "credit" / f"step-{step:05d}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    return CreditPage(step, path, page, credit_markdown(inspected, first, title=title))
