"""Uploads to the Hub: what is saved stays, and one line says why an upload failed and how to do it later."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .escape import one_line

# What huggingface_hub raises: of HTTP, of sockets, logins and names, and where an upload was cut off.
_FAILURES = (httpx.HTTPError, OSError, ValueError, RuntimeError)


class HubError(ValueError):
    """The Hub could not be reached or refused; the message says what was not done and how to do it later."""


def upload_command(repository: str, folder: str | Path, *, private: bool = False) -> str:
    """The command that uploads a folder, without its checkpoints."""
    flags = ["--exclude", "checkpoint-*", *(["--private"] if private else [])]
    return shlex.join(["hf", "upload", repository, str(folder), ".", *flags])


@contextmanager
def hub_errors(message: str, fix: str) -> Iterator[None]:
    """Turn what calls of the Hub raise into one line.

    Args:
        message: What was not done.
        fix: What to do about it.

    Raises:
        HubError: With both, and the reason.
    """
    try:
        yield
    except _FAILURES as error:
        raise HubError(f"{message} ({one_line(str(error)) or type(error).__name__}); {fix}") from error
