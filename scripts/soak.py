"""Soak test: growth of memory and of step time, and leftover files, in a long run with small batches.

    python scripts/soak.py --steps 2000

Runs `cepo train` on the shipped policy with an EMA teacher and a checkpoint every 100 steps, two of them kept. After
the first tenth of the steps, the first and the last third are compared. The exit status is 1 if resident memory or step
time grew beyond the bounds below, or if the run leaves files that a run of 220 steps does not.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import psutil

MEMORY_BOUND = 20.0  # MiB per 1,000 steps; the log history takes some kilobytes a step
TIME_BOUND = 1.2  # ratio of CPU times, which vary by a tenth on a busy machine

OPTIONS = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 12,
    "figures_problems": 50,
    "eval_problems": 4,
    "eval_samples": 0,
    "accuracy_every": 500,
    "save_steps": 100,
    "save_total_limit": 2,
    "teacher": "ema",
    "teacher_ema_decay": 0.9,
    "answer_extractor": "tests.support.killing.last_word",
    "reward_funcs": "tests.support.killing.by_length",
    "learning_rate": 1e-5,
    "use_cpu": True,
}


def train(folder: Path, method: str, steps: int) -> tuple[list[float], list[float]]:
    """Resident memory [MiB] and cumulative CPU time [seconds] after each step of a run."""
    words = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    command = ["train", "--method", method, "--max_steps", str(steps), "--output_dir", str(folder), *words]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cepo.cli", *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    memory, seconds, watched = [], [], psutil.Process(process.pid)
    for line in process.stdout:
        if line.startswith("step "):
            memory.append(watched.memory_info().rss / 2**20)
            times = watched.cpu_times()
            seconds.append(times.user + times.system)
    if process.wait():
        raise SystemExit(f"the run failed with status {process.returncode}")
    return memory, seconds


def thirds(values: list[float]) -> tuple[float, float]:
    """Medians of the first and the last third of the values after the first tenth."""
    steady = values[len(values) // 10 :]
    third = len(steady) // 3
    return median(steady[:third]), median(steady[-third:])


def files(folder: Path) -> set[str]:
    """The files of a run, with checkpoints numbered from the last one."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    kept = sorted({name.split("/")[0] for name in found if name.startswith("checkpoint-")}, key=lambda n: int(n[11:]))
    renamed = {name: f"checkpoint {place}" for place, name in enumerate(reversed(kept))}
    return {"/".join([renamed.get(first, first), *rest]) for first, *rest in (name.split("/") for name in found)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--method", default="cepo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        folder, short = Path(base) / "long", Path(base) / "short"
        memory, until = train(folder, options.method, options.steps)
        seconds = [after - before for before, after in itertools.pairwise(until)]
        train(short, options.method, 220)
        extra = files(folder) ^ files(short)
    before, after = thirds(memory)
    first, last = thirds(seconds)
    growth = (after - before) / (len(memory) * 0.6) * 1000  # the middles of the thirds are 60 % of the steps apart
    print(f"{options.method}, {len(memory)} steps")
    print(f"resident memory: {before:.0f} MiB, later {after:.0f} MiB: {growth:+.1f} MiB per 1,000 steps")
    print(f"CPU time of a step: {first * 1000:.0f} ms, later {last * 1000:.0f} ms: ratio {last / first:.2f}")
    print(f"files beyond those of a run of 220 steps: {sorted(extra)}")
    return 1 if growth > MEMORY_BOUND or last / first > TIME_BOUND or extra else 0


if __name__ == "__main__":
    sys.exit(main())
