"""Tables of estimates, for terminals and for Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..data.escape import one_line


def interval(estimate: Mapping[str, float | None] | None, form: str, *, nothing: str = "", key: str = "value") -> str:
    """A number and its interval, from `Estimate.as_dict`; `nothing` without a number."""
    if estimate is None or (value := estimate[key]) is None:
        return nothing
    low, high = estimate["low"], estimate["high"]
    return format(value, form) if low is None or high is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def counted(number: int, thing: str) -> str:
    """A number of things: 1 seed, 8 seeds."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def plain_table(caption: str, *, gap: int = 1) -> Table:
    """A table without vertical lines, narrow enough for a terminal of 80 columns."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), caption=caption, caption_justify="left")


def markdown_text(text: str) -> str:
    """Text on one line, with cell separators, HTML and links escaped."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table; cells are escaped."""
    table = [f"| {' | '.join(map(markdown_text, row))} |" for row in (heads, *rows)]
    return "\n".join([table[0], f"|{'---|' * len(heads)}", *table[1:]]) + "\n"
