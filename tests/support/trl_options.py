"""The table of TRL's options in docs/options.md."""

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs" / "options.md"


class Support(NamedTuple):
    """Support with token advantages and with a divergence loss: exact, refused or known."""

    advantages: str
    divergence: str


_ROWS = re.findall(r"^\| (`.*`) \| (exact|refused|known) \| (exact|refused|known) \| .*\|$", DOCS.read_text(), re.M)
# Support for each of TRL's options by name.
TRL_OPTIONS = {name: Support(*kinds) for names, *kinds in _ROWS for name in re.findall(r"`(\w+)`", names)}
