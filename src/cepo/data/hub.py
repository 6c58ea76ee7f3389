"""Errors of uploads to the Hub, with the command that repeats the upload."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .escape import one_line

# Errors of huggingface_hub: HTTP, sockets, logins, repository names, and interrupted uploads.
_FAILURES = (httpx.HTTPError, OSError, ValueError, RuntimeError)


class HubError(ValueError):
    """A failed request to the Hub. The message says what was not done and how to do it later."""


def upload_command(repository: str, folder: str | Path, *, private: bool = False) -> str:
    """The command that uploads a folder without its checkpoints."""
    flags = ["--exclude", "checkpoint-*", *(["--private"] if private else [])]
    return shlex.join(["hf", "upload", repository, str(folder), ".", *flags])


@contextmanager
def hub_errors(message: str, fix: str) -> Iterator[None]:
    """Turn errors of the Hub into one line.

    Args:
        message: What was not done.
        fix: What the user can do.

    Raises:
        HubError: With the message, the reason and the fix.
    """
    try:
        yield
    except _FAILURES as error:
        raise HubError(f"{message} ({one_line(str(error)) or type(error).__name__}); {fix}") from error
