"""What a function of the user's raised, on one line that says where."""

import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class MethodError(ValueError):
    """A stage of a method that is not ours failed; the message names the method, the stage, and the line."""


def raised(error: Exception, file: str | None, beside: str) -> tuple[str, bool]:
    """Words such as: raised KeyError: 'x' (file.py, line 3); and whether the user's code was entered at all.

    Args:
        error: What came out of it.
        file: The user's, whose last line is named; where it has no part, the last line of all.
        beside: The file that called it, whose own lines tell nothing.
    """
    said = str(error).strip().splitlines()
    text = f"raised {type(error).__name__}{f': {said[0]}' if said else ''}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in (beside, __file__)]
    if not frames:
        return text, False
    if isinstance(error, SyntaxError):  # which says its place itself
        return text, True
    frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return f"{text} ({Path(frame.filename).name}, line {frame.lineno})", True


def file_of(function: Callable[..., Any]) -> str | None:
    """Where a function is written, if that is known."""
    code = getattr(inspect.unwrap(plain(function)), "__code__", None)
    return code and code.co_filename


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside partials and objects that are called."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def guarded_stage(stage: Callable[..., Any], called: str) -> Callable[..., Any]:
    """A stage of a method that raises nothing but `MethodError`.

    Args:
        stage: The stage.
        called: What to call it in messages: "the placement of my_method:mine".
    """

    @functools.wraps(stage, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return stage(*args, **kwargs)
        except (MethodError, torch.OutOfMemoryError):  # the second one has a meaning of its own for others
            raise
        except Exception as error:
            raise MethodError(f"{called} {raised(error, file_of(stage), __file__)[0]}") from error

    return run
