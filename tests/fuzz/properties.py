"""Registry of property tests on random input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings


@dataclass(frozen=True)
class Property:
    """A check on examples of hypothesis strategies.

    Attributes:
        check: Takes an example as keyword arguments; raises if the property fails.
        strategies: The strategy of each argument.
        examples: Number of examples for `make test-fuzz`.
        name: Name of the test.
    """

    check: Callable[..., None]
    strategies: dict[str, Any]
    examples: int
    name: str

    def run(self, examples: int, *, derandomize: bool) -> int:
        """Check this many examples, the same ones every time with `derandomize`. Returns how many ran."""
        count = 0

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=derandomize,
            database=None,
            print_blob=True,  # a failure prints the code that repeats it
            suppress_health_check=list(HealthCheck),
        )
        @given(**self.strategies)
        def checked(**example: Any) -> None:
            nonlocal count
            count += 1
            self.check(**example)

        checked()
        return count


PROPERTIES: list[Property] = []


def examples(number: int, name: str = "", **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a property with this number of examples."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        PROPERTIES.append(Property(check, strategies, number, name or check.__name__))
        return check

    return register
