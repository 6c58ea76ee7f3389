"""Credit as Markdown, for loggers that show no HTML: a table of rollouts and their most changed tokens per group."""

import json
from collections.abc import Sequence

from ..methods.token_advantages import NEAR
from .tables import markdown_table, markdown_text
from .view_model import VERDICT, InspectedGroup, Variant, explain_variant


def credit_markdown(groups: Sequence[InspectedGroup], variant: Variant, *, title: str, strongest: int = 6) -> str:
    """The groups' rollouts under one variant.

    Args:
        groups: The inspected groups.
        variant: The method and rule.
        title: Title.
        strongest: Number of tokens per rollout: those with the largest change from the rollout's advantage.
    """
    parts = [
        f"**{markdown_text(title)}**",
        f"{markdown_text(variant.name)}: {markdown_text(explain_variant(variant))}",
        f"Token advantage minus rollout advantage, at the {strongest} tokens of a rollout that change most:",
    ]
    for one in groups:
        rows = []
        for inspected in one.rollouts:
            rollout, credit = inspected.rollout, inspected.credit[variant]
            changes = (credit.advantages - credit.rollout_advantage).tolist()
            shift = credit.shift.abs().tolist()
            order = sorted((i for i in range(len(shift)) if shift[i] > NEAR), key=lambda i: -shift[i])[:strongest]
            tokens = [f"{json.dumps(inspected.tokens[i], ensure_ascii=False)} {changes[i]:+.2f}" for i in sorted(order)]
            numbers = [f"{rollout.reward:.2f}", f"{rollout.advantage:+.2f}"]
            rows.append([str(inspected.number), VERDICT[rollout.correct], *numbers, ", ".join(tokens) or "none"])
        about = f"r+ {one.credit(variant)[0].references.positive}" if one.rollouts else "no rollouts"
        parts += [markdown_text(about), markdown_table(["rollout", "verdict", "reward", "A", "tokens"], rows)]
    return "\n\n".join(parts)
