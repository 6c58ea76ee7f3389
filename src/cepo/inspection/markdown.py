"""Credit as Markdown, for places that show no page: a table of each group's rollouts and the tokens that moved most."""

import json
from collections.abc import Sequence

from ..methods.token_advantages import NEAR
from .inspect import Variant
from .tables import markdown_table, markdown_text
from .view_model import Shown, explain_variant

_VERDICT = {True: "right", False: "wrong", None: "no verdict"}


def credit_markdown(shown: Sequence[Shown], variant: Variant, *, title: str, strongest: int = 6) -> str:
    """The groups' rollouts under one variant.

    Args:
        shown: The groups.
        variant: The method and rule.
        title: Its title.
        strongest: How many tokens of each rollout to name: those whose credit is furthest from GRPO's.
    """
    parts = [
        f"**{markdown_text(title)}**",
        f"{markdown_text(variant.name)}: {markdown_text(explain_variant(variant))}",
        f"Token advantage less GRPO's, of the {strongest} tokens of a rollout that moved most:",
    ]
    for one in shown:
        rows = []
        for place, (rollout, inspected) in enumerate(zip(one.group.rollouts, one.inspected, strict=True)):
            attempt, credit = one.group.attempts[one.group.first + place], inspected.credit[variant]
            moved = credit.advantages - credit.rollout_advantage
            shift = credit.shift.abs().tolist()
            order = sorted((i for i in range(len(shift)) if shift[i] > NEAR), key=lambda i: -shift[i])[:strongest]
            tokens = [
                f"{json.dumps(one.tokens[place][position], ensure_ascii=False)} {float(moved[position]):+.2f}"
                for position in sorted(order)
            ]
            numbers = [f"{attempt.reward:.2f}", f"{rollout.advantage:+.2f}"]
            rows.append([str(place + 1), _VERDICT[attempt.correct], *numbers, ", ".join(tokens) or "none"])
        about = f"r+ {one.inspected[0].credit[variant].references.positive}" if one.inspected else "no rollouts"
        parts += [markdown_text(about), markdown_table(["rollout", "verdict", "reward", "A", "tokens"], rows)]
    return "\n\n".join(parts)
