"""Errors of datasets and models, each with the fix."""

from collections.abc import Iterator
from contextlib import contextmanager


class DatasetError(ValueError):
    """A dataset that cannot be trained on. The message names the column, the row and the fix."""


class LoadingError(ValueError):
    """A model, dataset or reward function that cannot be loaded. The message names the option."""


@contextmanager
def loading_errors(option: str, name: str) -> Iterator[None]:
    """Name the option and the model in errors of `from_pretrained`.

    Raises:
        LoadingError: If the model is missing, or needs `trust_remote_code`.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        needs_code = "trust_remote_code" in str(error)
        missing = isinstance(error, OSError) and error.errno is None  # errors of the operating system have a number
        if isinstance(error, LoadingError) or not (missing or needs_code):
            raise
        fix = " On the command line: --trust_remote_code true" if needs_code else ""
        raise LoadingError(f"{option}: cannot load {name}: {error}{fix}") from error
