"""Credit in the terminal: the tokens of each rollout, colored and underlined by their shift; statistics of evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..data.sampling import text_of_messages
from ..methods.token_advantages import NEAR
from .evidence_statistics import KINDS, SIGN_TOLERANCE
from .tables import interval, plain_table
from .view_model import (
    VERDICT,
    InspectedGroup,
    InspectedRollout,
    Variant,
    explain_references,
    explain_variant,
)

_MORE, _LESS = (32, 102, 186), (204, 102, 0)


def print_credit(console: Console, groups: Sequence[InspectedGroup], variant: Variant, *, strongest: int = 5) -> None:
    """Print the groups' rollouts under one variant, with the tokens of the largest evidence.

    Args:
        console: A `PlainConsole`, which escapes text of models and datasets.
        groups: The inspected groups.
        variant: The method and rule.
        strongest: Number of tokens per rollout to print numbers of.
    """
    console.print(Text.assemble((variant.name, "bold"), f": {explain_variant(variant)}"))
    console.print(Text.assemble("more than GRPO: ", _piece("blue", 1.0), ", less: ", _piece("orange", -1.0)))
    for one in groups:
        console.print()
        for role, text in text_of_messages(one.group.messages):
            console.print(Text.assemble((f"{role}: ", "dim"), text))
        for place, inspected in enumerate(one.rollouts):
            rollout, credit = inspected.rollout, inspected.credit[variant]
            if place == 0 and credit.references.positive:  # empty for a method without hints
                console.print(Text(f"r+ {credit.references.positive}"))
            negatives, fallback = explain_references(credit)
            console.print()
            about = f"{VERDICT[rollout.correct]}, reward {rollout.reward:.2f}, advantage {rollout.advantage:+.2f}"
            against = f"; r- {'   '.join(negatives)}" if negatives else ""
            reason = f"; {fallback}" if fallback else ""
            console.print(Text.assemble((f"rollout {inspected.number}", "bold"), f": {about}{against}{reason}"))
            pieces = zip(inspected.tokens, credit.shift.tolist(), strict=True)
            console.print(Text.assemble(*(_piece(text, shift) for text, shift in pieces)))
            if inspected.tokens:
                unchanged = 1 - credit.moved.double().mean().item()
                console.print(Text(f"unchanged advantage: {unchanged:.0%} of the tokens", style="dim"))
            if credit.positive is not None and credit.shift.any():
                console.print(_strongest(inspected, variant, strongest))


def _piece(text: str, shift: float) -> Text:
    strength = min(1.0, abs(shift))
    if strength <= NEAR:
        return Text(text)
    red, green, blue = _MORE if shift > 0 else _LESS
    faded = [round(255 + (channel - 255) * strength) for channel in (red, green, blue)]
    style = Style(
        bgcolor="#{:02x}{:02x}{:02x}".format(*faded),
        color="white" if strength > 0.5 else "black",
        bold=strength > 0.5,
        underline=shift > 0,
    )
    return Text(text, style)


def _strongest(inspected: InspectedRollout, variant: Variant, number: int) -> Table:
    credit = inspected.credit[variant]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("token", "log P_T+", "log P_T-", "log P_S", "evidence", "token advantage"):
        table.add_column(name, justify="left" if name == "token" else "right")
    assert credit.positive is not None
    assert credit.negative is not None
    columns = (credit.positive, credit.negative, inspected.student, credit.evidence, credit.advantages)
    for position in credit.evidence.abs().argsort(descending=True, stable=True)[:number].sort().values.tolist():
        numbers = (f"{float(values[position]):.3f}" for values in columns)
        table.add_row(Text(repr(inspected.tokens[position])), *numbers)
    return table


_SHARE, _NATS = ".0%", ".3f"
_SIDES = ("positive", "negative")
_ROWS = {
    "moved": ("tokens with a changed advantage", _SHARE),
    "abs_mean": ("mean |evidence|, nats", _NATS),
    "abs_mean_before": ("  before the answer is mentioned", _NATS),
    "abs_mean_between": ("  from there to the box", _NATS),
    "abs_mean_box": ("  in the box", _NATS),
    "against": (f"against the verdict ({SIGN_TOLERANCE} nats +)", _SHARE),
}


def statistics_table(
    name: str, evidence: Mapping[str, Mapping[str, Any]], following: Mapping[str, Mapping[str, Any]]
) -> Table:
    """The table of `cepo explain --statistics`.

    Args:
        name: Name of the method.
        evidence: Result of `evidence_statistics`.
        following: Result of `hint_following`.
    """
    table = plain_table("in brackets: 95 % intervals")
    table.title = Text(f"evidence of {name}")
    table.add_column("")
    for side in ("correct", "incorrect"):
        table.add_column(f"{side} rollouts", justify="right")
    sides = [evidence["correct"], evidence["incorrect"]]
    table.add_row("rollouts", *(str(side["rollouts"]) for side in sides))
    table.add_row("fallback references", *(f"{side.get('fallback', 0):.0%}" for side in sides))
    for key, (label, form) in _ROWS.items():
        if any(key in side for side in sides):
            table.add_row(label, *(interval(side[key], form) if key in side else "" for side in sides))
    table.add_section()
    table.add_row(Text("share of |evidence| / of tokens", style="dim"))
    for kind in KINDS:
        table.add_row(
            f"  {kind}",
            *(
                f"{interval(side[f'evidence_{kind}'], _SHARE)} / {side[f'tokens_{kind}']['value']:.0%}"
                if f"tokens_{kind}" in side
                else ""
                for side in sides
            ),
        )
    if any(following[side]["hinted"] for side in _SIDES):
        table.add_section()
        table.add_row(Text("greedy answers equal to", style="dim"), Text("r+", style="dim"), Text("r-", style="dim"))
        for key, label in (("hinted", "  with it in the hint"), ("unhinted", "  without a hint")):
            table.add_row(label, *(interval(following[side][key], _SHARE, key="accuracy") for side in _SIDES))
    return table
