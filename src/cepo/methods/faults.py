"""What a function of the user's raised, on one line that says where."""

import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class MethodError(ValueError):
    """A stage of a method that is not ours failed; the message names the method, the stage, and the line."""


def raised(function: Callable[..., Any] | None, error: Exception, beside: str) -> tuple[str, bool]:
    """Words such as: raised KeyError: 'x' (file.py, line 3); and whether the function was entered at all.

    Args:
        function: The user's; None: a file of theirs, whose last line is named.
        error: What came out of it.
        beside: The file that called it, whose own lines tell nothing.
    """
    said = str(error).strip().splitlines()
    text = f"raised {type(error).__name__}{f': {said[0]}' if said else ''}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in (beside, __file__)]
    if not frames:
        return text, False
    own = getattr(inspect.unwrap(plain(function)), "__code__", None) if function else None
    frame = next((f for f in reversed(frames) if own and f.filename == own.co_filename), frames[-1])
    return f"{text} ({Path(frame.filename).name}, line {frame.lineno})", True


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
    def run(*args: Any) -> Any:
        try:
            return stage(*args)
        except MethodError:
            raise
        except Exception as error:
            raise MethodError(f"{called} {raised(stage, error, __file__)[0]}") from error

    return run
