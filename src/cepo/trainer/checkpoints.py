"""Complete and incomplete checkpoints: a run that was killed must never resume from the latter."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer

# A file in the folder of a checkpoint while it is written.
MARK = "incomplete"
STATE_FILE = "trainer_state.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


def incomplete_reason(checkpoint: Path) -> str | None:
    """Why a folder is not a complete checkpoint; None if it is one."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    if (checkpoint / MARK).exists():
        return "it was cut off while it was written"
    state = checkpoint / STATE_FILE
    if not state.is_file():
        return f"it holds no checkpoint (no {STATE_FILE})"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError:
        return f"its {STATE_FILE} was cut off"
    return None


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The latest complete checkpoint of a run."""
    found = {int(m[1]): path for path in output_dir.glob("checkpoint-*") if (m := _FOLDER.fullmatch(path.name))}
    return next((found[step] for step in sorted(found, reverse=True) if incomplete_reason(found[step]) is None), None)


def find_checkpoint(given: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint of `resume_from_checkpoint`: a folder, or with True the latest complete one of `output_dir`.

    Raises:
        ValueError: If there is none, or it is incomplete.
    """
    text = str(given).lower()
    if text in ("", "false", "none"):
        return None
    if text == "true":
        last = last_whole_checkpoint(Path(output_dir))
        if last is None:
            raise ValueError(f"resume_from_checkpoint: there is no complete checkpoint in {output_dir}; leave it out")
        return str(last)
    reason = incomplete_reason(Path(str(given)))
    if reason is not None:
        raise ValueError(f"resume_from_checkpoint: {given}: {reason}")
    return str(given)


# Messages of torch and safetensors, which drop the error number.
_WRITE_ERRORS = (
    *("(os error ", "No space left", "file write failed", "iostream error"),
    *("PytorchStreamWriter failed", "unexpected pos"),
)


def _disk_problem(error: BaseException | None) -> str | None:
    """The disk error in a chain of exceptions; None without one."""
    while error is not None:
        if isinstance(error, OSError):
            return str(error)
        if any(words in str(error) for words in _WRITE_ERRORS):
            return f"a file could not be written, as on a full disk ({str(error).strip().splitlines()[0]})"
        error = error.__cause__ or error.__context__
    return None


def check_output_dir(output_dir: str) -> None:
    """Refuse a folder that cannot be written, before training. The folder is not created.

    Raises:
        OSError: Naming the folder and the reason.
    """
    folder = Path(output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OSError(f"output_dir: {output_dir} cannot be written: {error.strerror or error}") from error


class CheckpointError(OSError):
    """A checkpoint could not be written; the message has the reason."""


@contextmanager
def whole_checkpoint(trainer: GRPOTrainer, folder: Path) -> Iterator[None]:
    """Mark a checkpoint as incomplete while it is written, and remove older checkpoints only afterwards.

    Raises:
        CheckpointError: If the disk is full, read-only or gone.
    """
    args = trainer.args
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        if args.should_save:
            if (folder / MARK).exists():  # from a run that was killed
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MARK).touch()
        trainer.accelerator.wait_for_everyone()
        yield
        trainer.accelerator.wait_for_everyone()
        if args.should_save:
            (folder / MARK).unlink()
            best = trainer.state.best_model_checkpoint
            rotate_checkpoints(str(folder.parent), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)
    except Exception as error:
        if (problem := _disk_problem(error)) is not None:
            raise CheckpointError(problem) from error
        raise
    finally:
        args.save_total_limit = limit
