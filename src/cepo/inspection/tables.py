"""Tables of estimates, for terminals and for Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table


def interval(estimate: Mapping[str, float | None], form: str, *, nothing: str = "") -> str:
    """A number and its interval, as `Estimate.as_dict` has them; `nothing` where there is no number."""
    if estimate["value"] is None:
        return nothing
    if estimate["low"] is None:
        return format(estimate["value"], form)
    value, low, high = (format(estimate[part], form) for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def plain_table(caption: str, *, gap: int = 1) -> Table:
    """A table without lines between its columns, so that a terminal of 80 columns holds several."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), caption=caption, caption_justify="left")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
