"""`cepo train` on a quiet machine and beside one busy core, with OpenMP's threads that wait awake, asleep, or alone.

Each run is the real command, with the default recipe cut short; its seconds go from its first line to its last, over
accuracy and steps. They take turns, so that what else the machine does hits all alike.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from .measure import in_random_order, median

OURS = "asleep (ours)"
# What libgomp does by default: a few hundred thousand turns of a loop before a thread sleeps.
WAYS = {
    "awake (libgomp's default)": {"GOMP_SPINCOUNT": "300000"},
    OURS: {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def busy_core() -> Iterator[None]:
    """One other thread that computes all the time."""
    process = multiprocessing.get_context("spawn").Process(target=_work, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _work() -> None:
    while True:
        sum(number * number for number in range(10_000))


def _seconds(environment: dict[str, str], steps: int) -> float:
    """From the first line to the last: accuracy before, steps, accuracy after."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "--max_steps", str(steps), "--eval_problems", "16", "--eval_sampled_problems", "16"]
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "cepo.cli", *command, "--output_dir", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**clean, **environment, "HF_HUB_OFFLINE": "1"},
            cwd=Path(__file__).parent.parent,
        )
        assert process.stdout is not None
        begun = None
        lines = []
        for line in process.stdout:
            begun = begun or time.monotonic()
            lines.append(line)
        ended = time.monotonic()
        if process.wait() or begun is None:
            raise RuntimeError("".join(lines))
        return ended - begun


def run(
    ways: dict[str, dict[str, str]], *, steps: int, repeats: int, say: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Seconds of each way, ours among them, quiet and busy, and ratios to ours on the quiet machine.

    Args:
        ways: Names and what is in the environment.
        steps: Of each run.
        repeats: Runs of each way.
        say: Called with every row.
    """
    results = []
    times: dict[str, dict[str, list[float]]] = {}
    for machine in ("quiet", "busy"):
        runs = {name: partial(_seconds, environment, steps) for name, environment in ways.items()}
        with busy_core() if machine == "busy" else nullcontext():
            times[machine] = in_random_order(runs, repeats)
    ours = median(times["quiet"][OURS])
    for machine, found in times.items():
        for name, seconds in found.items():
            row = {"machine": machine, "threads": name, "seconds": median(seconds), "ratio": median(seconds) / ours}
            results.append(row)
            say(row)
    return results
