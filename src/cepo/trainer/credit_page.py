"""The page that a training run leaves every `credit_samples_every` steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..inspection.inspection import Group, Tell, all_variants, inspect
from ..inspection.page import credit_page
from ..inspection.shown import show
from ..methods.registry import METHODS
from ..scoring.requests import Prompt
from ..scoring.scoring import PromptEncoder, Read
from .cepo_config import CEPOConfig

NUMBER_OF_GROUPS = 2


def write_credit_page(
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    *,
    read: Read,
    encoder: PromptEncoder,
    tell: Tell,
    processing_class: Any,
    args: CEPOConfig,
    step: int,
    write: bool,
) -> None:
    """Read the groups under all methods and write their page to ``credit/step-00010.html`` in the output directory.

    Args:
        groups: The groups, or this process's part of them.
        prompts: Their prompts.
        read, encoder, tell: As for `inspect`.
        processing_class: Tokenizer, or processor.
        args: The run's options.
        step: The optimiser step.
        write: Whether to write; the processes that do not still make the passes.
    """
    variants = all_variants((args.max_negatives,))
    rule = args.negative_reference if METHODS[args.method].needs_negatives else None
    own = (variant for variant in variants if (variant.method, variant.rule) == (args.method, rule))
    selected = next(own, variants[-1])
    coefficient = args.coefficient_at(step)
    inspected = inspect(
        groups,
        prompts,
        variants,
        read=read,
        encoder=encoder,
        hint_template=args.hint_template,
        coefficient=coefficient,
        clip=args.evidence_clip,
        no_negative=args.no_negative,
        tell=tell,
    )
    if not write:
        return
    page = credit_page(
        show(groups, inspected, processing_class),
        title=f"Which tokens get the credit, step {step}",
        about={
            "run": str(args.output_dir),
            "method": selected.name if selected.method == args.method else args.method,
            "lambda": f"{coefficient:.3g}",
            # Whoever teaches in training: P_S, P_T+ and P_T- of a page are of the same weights.
            **({} if args.teacher == "policy" else {"read with": "the policy's own weights"}),
        },
        variants=variants,
        selected=selected,
        clip=args.evidence_clip,
    )
    path = Path(args.output_dir) / "credit" / f"step-{step:05d}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
