"""Tables of estimates, for terminals and for Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..data.escape import one_line


def interval(estimate: Mapping[str, float | None], form: str, *, nothing: str = "") -> str:
    """A number and its interval, as `Estimate.as_dict` has them; `nothing` where there is no number."""
    if estimate["value"] is None:
        return nothing
    if estimate["low"] is None:
        return format(estimate["value"], form)
    value, low, high = (format(estimate[part], form) for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def counted(number: int, thing: str) -> str:
    """A number of things: 1 seed, 8 seeds."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def plain_table(caption: str, *, gap: int = 1) -> Table:
    """A table without lines between its columns, so that a terminal of 80 columns holds several."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), caption=caption, caption_justify="left")


def markdown_text(text: str) -> str:
    """A text on one line that ends no cell, and holds neither HTML nor a link."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table, whose cells are text whoever named what they tell of."""
    table = [f"| {' | '.join(map(markdown_text, row))} |" for row in (heads, *rows)]
    return "\n".join([table[0], f"|{'---|' * len(heads)}", *table[1:]]) + "\n"
