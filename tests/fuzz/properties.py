"""What must hold of any input: each property with the number of examples that `make fuzz` tries.

`make test` tries a few of the same ones. A property takes its inputs from hypothesis, and fails by an assertion or by
raising what nobody expects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings


@dataclass
class Property:
    """A function of examples.

    Attributes:
        check: Is given an example, by name.
        strategies: Where its arguments come from.
        examples: How many `make fuzz` tries.
        name: For people.
        tried: How many have been.
    """

    check: Callable[..., None]
    strategies: dict[str, Any]
    examples: int
    name: str
    tried: int = 0

    def run(self, examples: int, *, derandomize: bool) -> None:
        """Try so many; with `derandomize`, the same ones every time."""

        # No deadline: machines are shared. A failure prints what repeats it.
        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=derandomize,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(**self.strategies)
        def trying(**example: Any) -> None:
            self.tried += 1
            self.check(**example)

        trying()


PROPERTIES: list[Property] = []


def examples(number: int, name: str = "", **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a property that `make fuzz` tries so often."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        PROPERTIES.append(Property(check, strategies, number, name or check.__name__))
        return check

    return register
