"""The page that a training run leaves every `credit_samples_every` steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.files import write_whole
from ..inspection.inspect import all_variants, inspect
from ..inspection.markdown import credit_markdown
from ..inspection.page import credit_page
from ..inspection.shown import show
from ..references.groups import Group
from ..scoring.pipeline import Pipeline
from ..scoring.requests import Prompt
from .cepo_config import CEPOConfig
from .loggers import CreditPage

NUMBER_OF_GROUPS = 2


def write_credit_page(
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    *,
    pipeline: Pipeline,
    processing_class: Any,
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
        processing_class: Tokenizer, or processor.
        args: The run's options.
        step: The optimiser step.
        write: Whether to write; the processes that do not still make the passes.
    """
    whole = all(len(group.rollouts) == len(group.attempts) for group in groups)
    # Whoever teaches in training: P_S, P_T+ and P_T- of a page are of the same weights.
    given = {name: value for name, value in args.given.items() if not name.startswith("teacher")}
    variants = all_variants(given, columns=list(groups[0].row) if whole else None)
    selected = next(
        (
            variant
            for variant in variants
            if (variant.options.method, variant.rule) == (args.method, args.negative_reference)
        ),
        None,
    )
    inspected = inspect(groups, prompts, variants, pipeline=pipeline, step=step)
    if not write:
        return None
    shown = show(groups, inspected, processing_class)
    first = variants[-1] if selected is None else selected
    title = f"Which tokens get the credit, step {step}"
    page = credit_page(
        shown,
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
    return CreditPage(step, path, page, credit_markdown(shown, first, title=title))
