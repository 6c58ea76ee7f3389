"""Credit in the terminal: the tokens of each rollout, coloured and underlined by how far they are moved; statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..data.sampling import text_of_messages
from ..methods.token_advantages import NEAR
from .evidence_statistics import KINDS, SIGN_TOLERANCE
from .inspect import Credit, Variant
from .tables import interval, plain_table
from .view_model import Shown, explain_references, explain_variant, share_not_moved

_MORE, _LESS = (32, 102, 186), (204, 102, 0)
_VERDICT = {True: "right", False: "wrong", None: "no verdict"}


def print_credit(console: Console, shown: Sequence[Shown], variant: Variant, *, strongest: int = 5) -> None:
    """Print the groups' rollouts under one variant, with the tokens whose evidence is strongest.

    Args:
        console: Where to; a `PlainConsole` escapes what models and data sets wrote.
        shown: The groups.
        variant: The method and rule.
        strongest: How many tokens of each rollout to give numbers of.
    """

    def line(text: Text | str = "") -> None:
        console.print(text if isinstance(text, Text) else Text(text), highlight=False)  # not markup

    line(Text.assemble((variant.name, "bold"), f": {explain_variant(variant)}"))
    line(Text.assemble("more than GRPO gives: ", _piece("blue", 1.0), ", less: ", _piece("orange", -1.0)))
    for one in shown:
        line()
        for role, text in text_of_messages(one.group.messages):
            line(Text.assemble((f"{role}: ", "dim"), text))
        for place, (rollout, inspected) in enumerate(zip(one.group.rollouts, one.inspected, strict=True)):
            attempt, credit = one.group.attempts[one.group.first + place], inspected.credit[variant]
            if place == 0 and credit.references.positive:  # else nobody was told anything
                line(f"r+ {credit.references.positive}")
            negatives, fallback = explain_references(credit)
            line()
            about = f"{_VERDICT[attempt.correct]}, reward {attempt.reward:.2f}, advantage {rollout.advantage:+.2f}"
            against = f"; r- {'   '.join(negatives)}" if negatives else ""
            line(
                Text.assemble(
                    (f"rollout {place + 1}", "bold"),
                    f": {about}{against}",
                    f"; {fallback}" if fallback else "",
                )
            )
            pieces = zip(one.tokens[place], credit.shift.tolist(), strict=True)
            line(Text.assemble(*(_piece(text, shift) for text, shift in pieces)))
            share = share_not_moved(credit.moved.tolist())
            line(Text(f"not moved: {share:.0%} of the tokens", style="dim") if share is not None else "")
            if credit.positive is not None and credit.shift.any():
                console.print(_strongest(one.tokens[place], credit, inspected.student.tolist(), strongest))


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


def _strongest(tokens: list[str], credit: Credit, student: list[float], number: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("token", "log P_T+", "log P_T-", "log P_S", "evidence", "token advantage"):
        table.add_column(name, justify="left" if name == "token" else "right")
    assert credit.positive is not None
    assert credit.negative is not None
    columns = [values.tolist() for values in (credit.positive, credit.negative, credit.evidence, credit.advantages)]
    order = sorted(range(len(tokens)), key=lambda position: -abs(columns[2][position]))[:number]
    for position in sorted(order):
        positive, negative, evidence, advantage = (column[position] for column in columns)
        numbers = [positive, negative, student[position], evidence, advantage]
        table.add_row(Text(repr(tokens[position])), *(f"{value:.3f}" for value in numbers))
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
        name: Of the method.
        evidence: Of `evidence_statistics`.
        following: Of `hint_following`.
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
        table.add_row(Text("greedy answers that are", style="dim"), Text("r+", style="dim"), Text("r-", style="dim"))
        for key, label in (("hinted", "  with it in the hint"), ("unhinted", "  without a hint")):
            table.add_row(label, *(_followed(following[side][key]) for side in _SIDES))
    return table


def _followed(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['accuracy']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"
