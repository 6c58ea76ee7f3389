"""The console of all commands. It escapes untrusted text."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from ..data.escape import escape


class PlainConsole(Console):
    """A console that parses no markup in strings and escapes their control characters. Styles come from `Text`.

    Args:
        options: Options of rich's `Console`.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All output passes here, tables and their captions included."""
        for segment in super().render(renderable, options):
            # Control segments are rich's; they move the cursor of a status line.
            yield segment if segment.control else segment._replace(text=escape(segment.text))

    def status(self, status: Any, **options: Any) -> Status:
        """Rich parses markup in a string status."""
        return super().status(Text(status) if isinstance(status, str) else status, **options)
