"""The console of all commands: what it prints is text, whoever wrote it."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from ..data.escape import escape


class PlainConsole(Console):
    """A console that reads no markup in strings, and obeys no control character in them; styles are those of `Text`.

    Args:
        options: As for rich's.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything that is printed passes here, tables and their captions too."""
        for segment in super().render(renderable, options):
            # Control segments are rich's own: they move the cursor of a status line.
            yield segment if segment.control else segment._replace(text=escape(segment.text))

    def status(self, status: Any, **options: Any) -> Status:
        """Rich's, which would read markup in a string."""
        return super().status(Text(status) if isinstance(status, str) else status, **options)
