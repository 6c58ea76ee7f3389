"""Trainings as processes of their own: several at a time, each in its folder, none of them twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch
from rich.console import Console

from ..data.files import write_whole
from ..inspection.tables import counted

_LOCK = "lock"


class BusyError(ValueError):
    """The output directory is not free for what is to be run."""


@dataclass
class Job:
    """One run of one arm."""

    arm: str
    seed: int
    options: dict[str, Any]
    folder: Path
    failure: str | None = None
    process: Any = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        """Whether it has run to its end, now or before."""
        return (self.folder / "summary.json").is_file()

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder / "log.txt"


def job_of(folder: Path, name: str, options: dict[str, Any], seed: int) -> Job:
    """The run of an arm with a seed, in its folder.

    Raises:
        BusyError: If the folder holds a finished run with other options.
    """
    job = Job(name, seed, {**options, "seed": seed}, folder / name / f"seed-{seed}")
    known = job.folder / "options.json"
    wanted = json.dumps(job.options, sort_keys=True, default=str)
    if job.done and known.is_file() and known.read_text() != wanted:
        raise BusyError(
            f"{job.folder} holds a run with other options; name another --output_dir, or remove that folder"
        )
    return job


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options as `cepo train` reads them."""
    words = []
    for name, value in options.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, (bool, dict)) else value}")
    return words


@contextmanager
def locked(folder: Path) -> Iterator[TextIO]:
    """The only command that works in a folder; the runs that it starts hold the lock too, in case they outlive it.

    Raises:
        BusyError: If there is another.
    """
    with (folder / _LOCK).open("w") as lock:
        try:
            import fcntl
        except ImportError:  # not a Unix
            yield lock
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(f"runs are under way in {folder}; wait for them, or name another --output_dir") from error
        yield lock


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """A plain `kill`, or the terminal that closes, as Ctrl-C: the runs are stopped too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(signum, frame):  # noqa: ARG001
    raise KeyboardInterrupt


def run_all(work: list[Job], jobs: int | None, lock: TextIO, console: Console) -> None:
    """Run what has not been run, several at a time.

    Args:
        work: The runs; those that are done stay as they are.
        jobs: How many at a time, fewer where memory does not allow it; None: one for each core, or a single one where
            there is a GPU.
        lock: Of the folder; see `locked`.
        console: Where to say what is done.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or (1 if torch.accelerator.is_available() else cores)
    waiting = [job for job in work if not job.done]
    if len(waiting) < len(work):
        console.print(f"{len(work) - len(waiting)} of {len(work)} runs are there already")
    running: list[Job] = []
    started, total, largest = time.monotonic(), len(waiting), 0.0
    stepped = False  # whether a run has got as far as the update, which takes the most memory
    try:
        while waiting or running:
            held = [_memory_of(job) for job in running]
            largest = max([largest, *held])
            stepped = stepped or any(map(_has_stepped, running))
            if waiting and len(running) < jobs and (not running or (stepped and _room_for_another(held, largest))):
                running.append(waiting.pop(0))
                _start(running[-1], max(1, cores // jobs), lock)
            time.sleep(0.5)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                stepped = stepped or job.done
                ended = total - len(waiting) - len(running)
                left = counted(round((time.monotonic() - started) / ended * (total - ended) / 60), "minute")
                if not job.done:
                    job.failure = _failure(job)
                state = "done" if job.done else f"FAILED: {job.failure}"
                console.print(
                    f"{ended}/{total} {job.arm}, seed {job.seed}: {state}; about {left} left",
                    highlight=False,
                    markup=False,
                )
    finally:
        for job in running:
            _stop(job)


def _room_for_another(held: list[float], largest: float) -> bool:
    """Whether another run fits beside those that hold so much, when all have grown to the largest seen [bytes]."""
    still_to_grow = sum(largest - memory for memory in held)
    return psutil.virtual_memory().available - still_to_grow > 1.3 * largest


def _has_stepped(job: Job) -> bool:
    """Whether a run has trained for a step."""
    return job.log.is_file() and any(
        line.startswith("step ") for line in job.log.read_text(errors="replace").split("\n")
    )


def _memory_of(job: Job) -> float:
    """Bytes that a run holds."""
    try:
        return float(psutil.Process(job.process.pid).memory_info().rss)
    except psutil.Error:
        return 0.0


def _stop(job: Job) -> None:
    """End a run and what it has started."""
    if job.process is None:
        return
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGTERM)
    else:
        job.process.terminate()
    job.process.wait()


def _start(job: Job, threads: int, lock: TextIO) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    write_whole(job.folder / "options.json", json.dumps(job.options, sort_keys=True, default=str))
    words = command_line({**job.options, "output_dir": str(job.folder)})
    command = [sys.executable, "-m", "cepo.cli", "train", *words]
    with job.log.open("w") as log:
        # A session of its own: Ctrl-C is for this process, which stops them all.
        job.process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
            pass_fds=() if sys.platform == "win32" else (lock.fileno(),),
        )


def _failure(job: Job) -> str:
    """Why a run ended before its end: the signal that killed it, or else the last line that it printed."""
    lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "it left no word"
    status = job.process.returncode
    if status >= 0:
        return last
    name = signal.Signals(-status).name
    hint = ", as by a system that is out of memory; try fewer --jobs" if name == "SIGKILL" else ""
    return f"killed ({name}{hint}) after: {last}"
