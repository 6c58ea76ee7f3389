"""Training runs in processes of their own, several at a time, each in its folder."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from ..data.files import write_whole
from ..inspection.tables import counted
from .arms import Arm, command_line
from .statistics import Run, load_run


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
        return self.folder / "log.txt"


def job_of(folder: Path, name: str, options: dict[str, Any], seed: int) -> Job:
    """The run of an arm with a seed, in `folder`/`name`/seed-`seed`."""
    job = Job(name, seed, {**options, "seed": seed}, folder / name / f"seed-{seed}")
    path = job.folder / "options.json"
    if job.done and path.is_file() and path.read_text() != _options_text(job.options):
        raise BusyError(f"{job.folder} holds a run with other options; change --output_dir, or remove that folder")
    return job


def _options_text(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)


@contextmanager
def locked(folder: Path) -> Iterator[TextIO]:
    """Lock a folder against other commands, and raise KeyboardInterrupt on SIGTERM and SIGHUP, as on Ctrl-C.

    Runs inherit the lock, which they keep if they outlive this process.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(f"{folder} is in use by other runs; wait for them, or change --output_dir") from error
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:  # ignored under nohup
                signal.signal(number, signal.default_int_handler)
        try:
            yield lock
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def run_arms(
    arms: Sequence[Arm], first_seed: int, folder: Path, jobs: int, lock: TextIO, console: Console
) -> tuple[dict[str, list[Run]], list[Job]]:
    """Run each arm with its seeds, seed by seed.

    Returns:
        The finished runs of each arm, and the failed jobs.
    """
    work = [
        job_of(folder, arm.name, arm.options, first_seed + number)
        for number in range(max((arm.seeds for arm in arms), default=0))
        for arm in arms
        if number < arm.seeds
    ]
    run_all(work, jobs, lock, console)
    runs = {arm.name: [load_run(job.folder) for job in work if job.arm == arm.name and job.done] for arm in arms}
    return runs, [job for job in work if not job.done]


def run_all(work: list[Job], jobs: int, lock: TextIO, console: Console) -> None:
    """Run unfinished jobs.

    Args:
        work: The jobs.
        jobs: Number of runs at a time; they share the CPU cores.
        lock: The output directory's lock, from `locked`.
        console: Prints the progress.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = [job for job in work if not job.done]
    if len(waiting) < len(work):
        console.print(f"{len(work) - len(waiting)} of {len(work)} runs have finished before")
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
            with suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGTERM)
            job.process.wait()


def _start(job: Job, threads: int, lock: TextIO) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    write_whole(job.folder / "options.json", _options_text(job.options))
    words = command_line({**job.options, "output_dir": str(job.folder)})
    with job.log.open("w") as log:
        # In a new session: Ctrl-C reaches this process alone, which then stops all runs.
        job.process = subprocess.Popen(
            [sys.executable, "-m", "cepo.cli", "train", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )


def _failure(job: Job) -> str:
    """The reason of a failure: the signal that killed the run, or the last line that it printed."""
    lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "(no output)"
    if job.process.returncode >= 0:
        return last
    name = signal.Signals(-job.process.returncode).name
    hint = ", perhaps out of memory; try fewer --jobs" if name == "SIGKILL" else ""
    return f"killed ({name}{hint}) after: {last}"
