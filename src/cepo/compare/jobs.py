"""Training runs as processes: several at a time, each in its folder."""

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

from rich.console import Console

from ..data.files import write_whole
from ..inspection.tables import counted


class BusyError(ValueError):
    """The output directory is in use, or holds other runs."""


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
        """Whether the run has finished, now or in an earlier call."""
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
    if job.done and known.is_file() and known.read_text() != _as_text(job.options):
        raise BusyError(
            f"{job.folder} holds a run with other options; name another --output_dir, or remove that folder"
        )
    return job


def _as_text(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options as arguments of `cepo train`."""
    words = []
    for name, value in options.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, (bool, dict)) else value}")
    return words


@contextmanager
def locked(folder: Path) -> Iterator[TextIO]:
    """Keep other commands out of a folder; the runs that this one starts hold the lock too, in case they outlive it.

    Raises:
        BusyError: If another command has it.
    """
    with (folder / "lock").open("w") as lock:
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
    """Treat SIGTERM and SIGHUP like Ctrl-C, so that child processes are stopped."""
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


def run_all(work: list[Job], jobs: int, lock: TextIO, console: Console) -> None:
    """Run what has not been run, `jobs` at a time; finished runs are kept.

    Args:
        work: The runs.
        jobs: Runs at a time; they share the cores.
        lock: Of the folder; see `locked`.
        console: Where progress is printed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = [job for job in work if not job.done]
    if len(waiting) < len(work):
        console.print(f"{len(work) - len(waiting)} of {len(work)} runs are there already")
    running: list[Job] = []
    started, total = time.monotonic(), len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                _start(running[-1], max(1, cores // jobs), lock)
            time.sleep(0.5)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                ended = total - len(waiting) - len(running)
                left = counted(round((time.monotonic() - started) / ended * (total - ended) / 60), "minute")
                job.failure = None if job.done else _failure(job)
                state = "done" if job.done else f"FAILED: {job.failure}"
                console.print(f"{ended}/{total} {job.arm}, seed {job.seed}: {state}; about {left} left")
    finally:
        for job in running:
            _stop(job)


def _start(job: Job, threads: int, lock: TextIO) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    write_whole(job.folder / "options.json", _as_text(job.options))
    words = command_line({**job.options, "output_dir": str(job.folder)})
    with job.log.open("w") as log:
        # In a session of its own: Ctrl-C reaches this process alone, which stops all runs.
        job.process = subprocess.Popen(
            [sys.executable, "-m", "cepo.cli", "train", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
            pass_fds=() if sys.platform == "win32" else (lock.fileno(),),
        )


def _stop(job: Job) -> None:
    """End a run and its child processes."""
    if job.process is None:
        return
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGTERM)
    else:
        job.process.terminate()
    job.process.wait()


def _failure(job: Job) -> str:
    """Why a run failed: the signal that killed it, or the last line that it printed."""
    lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "it printed nothing"
    status = job.process.returncode
    if status >= 0:
        return last
    name = signal.Signals(-status).name
    hint = ", perhaps out of memory; try fewer --jobs" if name == "SIGKILL" else ""
    return f"killed ({name}{hint}) after: {last}"
