"""Checkpoints that are whole, and those that were cut off: a run that was killed must never go on from the latter."""

import errno
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer

# Stands in a checkpoint while it is written.
MARK = "incomplete"
STATE_FILE = "trainer_state.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


def why_not_whole(checkpoint: Path) -> str | None:
    """What keeps a folder from being a checkpoint to go on from; None if nothing does."""
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
    """The latest checkpoint of a run that was written to its end."""
    found = {int(m[1]): path for path in output_dir.glob("checkpoint-*") if (m := _FOLDER.fullmatch(path.name))}
    return next((found[step] for step in sorted(found, reverse=True) if why_not_whole(found[step]) is None), None)


def find_checkpoint(given: str | bool | None, output_dir: str) -> str | None:
    """What `resume_from_checkpoint` names: a folder, or, with True, the latest whole one of `output_dir`.

    Raises:
        ValueError: If there is none, or it is not whole.
    """
    if given is None or str(given).lower() in ("", "false", "none"):
        return None
    if str(given).lower() == "true":
        last = last_whole_checkpoint(Path(output_dir))
        if last is None:
            raise ValueError(f"resume_from_checkpoint: there is no whole checkpoint in {output_dir}; leave it out")
        return str(last)
    reason = why_not_whole(Path(str(given)))
    if reason is not None:
        raise ValueError(f"resume_from_checkpoint: {given}: {reason}")
    return str(given)


# A full disk, a quota, a disk that went read-only or away.
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOENT, errno.ENOTDIR),
}
# What torch and safetensors say of it, who keep the number to themselves.
_WRITES = (
    "(os error ",
    "No space left",
    "file write failed",
    "iostream error",
    "PytorchStreamWriter failed",
    "unexpected pos",
)


def disk_problem(error: BaseException | None) -> str | None:
    """What the disk could not do, if an error, or one behind it, says that; torch and safetensors wrap theirs."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return str(error)
        if any(words in str(error) for words in _WRITES):
            return f"a file could not be written, as on a full disk ({str(error).strip().splitlines()[0]})"
        error = error.__cause__ or error.__context__
    return None


def check_output_dir(output_dir: str) -> None:
    """Refuse a folder that cannot be written, before anything costs time.

    Raises:
        OSError: Naming the folder and the reason.
    """
    folder = Path(output_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())  # nothing is made before it is needed
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"output_dir: {output_dir} cannot be written: {error.strerror or error}") from error


class CheckpointError(OSError):
    """The disk did not take a checkpoint; the message says why."""


@contextmanager
def written_whole(trainer: GRPOTrainer, folder: Path) -> Iterator[None]:
    """What is written into a checkpoint here is marked as incomplete until all of it is there.

    Older checkpoints are removed after that, not before.

    Raises:
        CheckpointError: If the disk is full, read-only or gone.
    """
    try:
        with _marked(trainer, folder):
            yield
    except Exception as error:
        if (problem := disk_problem(error)) is not None:
            raise CheckpointError(problem) from error
        raise


@contextmanager
def _marked(trainer: GRPOTrainer, folder: Path) -> Iterator[None]:
    args = trainer.args
    if args.should_save:
        if (folder / MARK).exists():  # of a run that was killed
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    trainer.accelerator.wait_for_everyone()
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
    trainer.accelerator.wait_for_everyone()
    if args.should_save:
        (folder / MARK).unlink()
        best = trainer.state.best_model_checkpoint
        rotate_checkpoints(str(folder.parent), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)
