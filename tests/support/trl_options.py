"""The table of TRL's options in docs/options.md."""

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs" / "options.md"


class Support(NamedTuple):
    """Support with token advantages and with a divergence loss: exact, refused or known."""

    advantages: str
    divergence: str


def read_table():
    """Support for each of TRL's options by name."""
    rows = re.findall(r"^\| (`.*`) \| (exact|refused|known) \| (exact|refused|known) \| .*\|$", DOCS.read_text(), re.M)
    return {name: Support(*kinds) for names, *kinds in rows for name in re.findall(r"`(\w+)`", names)}


TRL_OPTIONS = read_table()
