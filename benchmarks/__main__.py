"""`python -m benchmarks`: everything side by side in one run; tables on the terminal, numbers in benchmarks/results."""

import argparse
import json
import logging
import shlex
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cepo.commands import quiet_libraries

from . import busy, kernels, models, scorer, step, update
from .measure import machine

PARTS = ["scorer", "update", "step", "kernels", "busy"]
# What is said of a row in words.
NAMES = ("what", "part", "shape", "method", "rule", "machine", "threads")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = _options()
    quiet_libraries()
    warnings.filterwarnings("ignore")
    logging.getLogger("trl").setLevel(logging.ERROR)
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    defaults = ("qwen3-vl-2b",) * 2 if on_gpu else ("tiny",) * 2 if options.quick else ("small", "tiny")
    of_scorer, of_step = [options.architecture or default for default in defaults]
    about = {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        **machine(device, dtype),
    }
    rate = about["matmul_gflops"] * 1e9
    console = Console(width=150)
    console.print(about)
    parts = options.parts or PARTS
    found: dict[str, list[dict[str, Any]]] = {}
    if "scorer" in parts:
        rows = _scorer(options, of_scorer, device, dtype, rate)
        report("scorer", about | {"architecture": of_scorer}, rows, options.output_dir, console)
    if "update" in parts:
        model = models.build(of_step, device, dtype)
        repeats = options.repeats or (1 if options.quick else 5)
        found["update"] = update.run(model, rollouts=8, repeats=repeats, say=_progress("update"))
        report("update", about | {"architecture": of_step}, found["update"], options.output_dir, console)
    if "step" in parts:
        canned = options.canned_rollouts or on_gpu
        found["step"] = _step(options, of_step, device, dtype, canned=canned)
        about_steps = about | {"architecture": of_step, "canned_rollouts": canned}
        report("step", about_steps, found["step"], options.output_dir, console)
    if "kernels" in parts and not options.quick:
        canned = options.canned_rollouts or on_gpu
        rows = kernels.run(of_step, device, dtype, rate, canned=canned, say=_progress("kernels"))
        report(
            "kernels", about | {"architecture": of_step, "canned_rollouts": canned}, rows, options.output_dir, console
        )
    if "busy" in parts and not on_gpu:
        ways = {busy.OURS: busy.WAYS[busy.OURS]} if options.quick else busy.WAYS
        repeats, steps = (1, 1) if options.quick else (3, 3)
        found["busy"] = busy.run(ways, steps=steps, repeats=repeats, say=_progress("busy"))
        report("busy", about, found["busy"], options.output_dir, console)
    for line in targets(found):
        console.print(line)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure; default: all")
    parser.add_argument("--quick", action="store_true", help="a coarse version, in under five minutes on two cores")
    parser.add_argument(
        "--repeats",
        type=int,
        help="rounds, each in random order; medians are reported (default: 3, for steps 7)",
    )
    parser.add_argument("--micro_batch", type=int, default=8, help="rows of a forward pass of the scorer")
    parser.add_argument(
        "--architecture",
        choices=list(models.ARCHITECTURES),
        help="default: small for the scorer and tiny for steps; on a GPU the 2B one",
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU that is there")
    parser.add_argument(
        "--canned_rollouts", action="store_true", help="random rollouts, not sampled (default on a GPU)"
    )
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    return parser.parse_args()


def _scorer(
    options: argparse.Namespace, architecture: str, device: Any, dtype: Any, rate: float
) -> list[dict[str, Any]]:
    model = models.build(architecture, device, dtype)
    shapes, shares, repeats = list(scorer.SHAPES.values()), [0.0, 0.4, 0.7], options.repeats or 3
    if options.quick:
        shapes, shares, repeats = [replace(scorer.SHAPES["paper"], groups=5)], [0.0, 0.4], 1
    return scorer.run(
        model, shapes, shares, repeats=repeats, micro_batch=options.micro_batch, rate=rate, say=_progress("scorer")
    )


def _step(
    options: argparse.Namespace, architecture: str, device: Any, dtype: Any, *, canned: bool
) -> list[dict[str, Any]]:
    groups, repeats, methods = 5, options.repeats or 7, step.OURS
    tasks = [step.paper_task(groups, share, architecture, device, dtype) for share in (0.0, 0.4)]
    if options.quick:
        repeats, methods = 1, [("grpo", ""), ("cepo", "own_or_mixture")]
    elif not canned:
        tasks.insert(0, step.default_task(8))
    return step.run(tasks, methods, repeats=repeats, canned=canned, say=_progress("step"))


def _progress(part: str) -> Any:
    started = time.perf_counter()

    def say(row: dict[str, Any]) -> None:
        name = " ".join(str(row[key]) for key in NAMES if key in row)
        dead = f", zero variance {row['zero_variance']:.0%}" if "zero_variance" in row else ""
        print(f"[{time.perf_counter() - started:6.0f} s] {part}: {name}{dead}", flush=True)

    return say


# Of the default rule's step at the paper's shape: share of dead groups, and the ratio to TRL's GRPO step.
_STEPS = ((0.0, 0.85), (0.4, 0.70))
# Of a run beside one busy core, to the same run on a quiet machine.
_BUSY = 2.2


def targets(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A line for each target that was measured: met or not."""
    lines = []
    for dead, most in _STEPS:
        for row in found.get("step", []):
            if (row["shape"], row["method"], row["rule"]) != ("paper", "cepo", "own_or_mixture"):
                continue
            if abs(row["zero_variance"] - dead) < 0.05:
                lines.append(
                    _target(f"a CEPO step, {dead:.0%} dead groups, of TRL's GRPO", row["ratio_to_trl_grpo"], most)
                )
    for row in found.get("busy", []):
        if (row["machine"], row["threads"]) == ("busy", busy.OURS):
            lines.append(_target("a run beside one busy core, of one alone", row["ratio"], _BUSY))
    return lines


def _target(what: str, ratio: float, most: float) -> str:
    return f"{'met    ' if ratio <= most else 'not met'}  {what}: {ratio:.2f}, at most {most:.2f}"


# Heads are short so that the tables fit a terminal; docs/performance.md says what they mean.
COLUMNS = {
    "scorer": {
        "shape": "{shape}",
        "dead": "{zero_variance:.0%}",
        "C": "{contexts}",
        "seconds": "{seconds[cepo]:.2f}",
        "ref/ours": "{ratio_to_reference:.2f}",
        "TRL/ours": "{ratio_to_trl:.2f}",
        "tokens": "{tokens_forwarded[cepo]:,} of {tokens_forwarded[reference]:,}",
        "/floor": "{tokens_over_floor:.2f}",
        "s/floor": "{seconds_over_floor:.1f}",
        "of matmul": "{share_of_matmul_rate[cepo]:.0%}",
        "MB ref, TRL, ours": "{memory}",
    },
    "update": {
        "what": "{what}",
        "shape": "{shape}",
        "seconds, whole": "{seconds[whole]:.2f}",
        "of whole": "{of_whole}",
        "peak MB": "{memory}",
    },
    "kernels": {
        "part": "{part}",
        "seconds": "{seconds:.2f}",
        **{kind: "{kinds[" + kind + "]:.2f}" for kind in (*kernels.KINDS, kernels.ELSE, kernels.OUTSIDE)},
        "floor": "{floor_seconds:.2f}",
    },
    "busy": {
        "machine": "{machine}",
        "threads": "{threads}",
        "seconds": "{seconds:.1f}",
        "of ours, quiet": "{ratio:.2f}",
    },
    "step": {
        "shape": "{shape}",
        "dead": "{zero_variance:.0%}",
        "method": "{method}",
        "rule": "{rule}",
        "seconds": "{seconds:.2f}",
        "/TRL's GRPO": "{ratio_to_trl_grpo:.2f}",
        "of fastest": "{ratio_of_fastest:.2f}",
        "generation": "{generation_seconds:.2f}",
        "teachers": "{teachers_seconds:.2f}",
        "update": "{update_seconds:.2f}",
        "peak MB": "{memory}",
    },
}


def report(part: str, about: dict[str, Any], rows: list[dict[str, Any]], folder: Path, console: Console) -> None:
    """Keep what a part measured, and show it."""
    # Before anything else: an hour of measuring lies behind these rows.
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    table = Table(title=f"{part}: medians")
    for column in COLUMNS[part]:
        table.add_column(column, justify="left" if column in NAMES else "right")
    for row in rows:
        held, ratio = row.get("peak_memory", {}), row.get("ratio")
        memory = ", ".join(f"{size / 1e6:,.0f}" for size in (held.values() if isinstance(held, dict) else [held]))
        of_whole = ", ".join(f"{name} {value:.2f}" for name, value in ratio.items()) if isinstance(ratio, dict) else ""
        table.add_row(*(form.format(**row, memory=memory, of_whole=of_whole) for form in COLUMNS[part].values()))
    console.print(table)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
