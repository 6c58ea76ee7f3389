"""Measure scoring, update, sampling, steps, evidence in bfloat16; write benchmarks/results/*.json and print tables."""

import argparse
import json
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cepo.commands import quiet_libraries

from . import evidence, models, scorer, step, update
from .measure import machine

PARTS = ("scorer", "update", "step", "evidence")
LABELS = ("what", "shape", "method", "rule")  # columns of text
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = _options()
    quiet_libraries()
    warnings.filterwarnings("ignore")
    logging.getLogger("trl").setLevel(logging.ERROR)
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    small, tiny = ("qwen3-vl-2b",) * 2 if on_gpu else ("tiny",) * 2 if options.quick else ("small", "tiny")
    architectures = {"scorer": options.architecture or small, "update": options.architecture or tiny}
    architectures |= {"step": architectures["update"], "evidence": "the shipped policy"}
    about = {"command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), **machine(device, dtype)}
    console = Console(width=150)
    console.print(about)
    for part in options.parts or PARTS:
        name, say = architectures[part], _progress(part)
        if part == "scorer":
            rows = _scorer(options, models.build(name, device, dtype), about["matmul_gflops"] * 1e9, say)
        elif part == "update":
            repeats = options.repeats or (1 if options.quick else 5)
            rows = update.run(models.build(name, device, dtype), rollouts=8, repeats=repeats, say=say)
        elif part == "evidence":
            problems, rollouts, length = (2, 2, 8) if options.quick else (30, 4, 176)
            rows = evidence.run(device, prompts=problems, rollouts=rollouts, length=length, say=say)
        else:
            rows = _step(options, name, device, dtype, options.canned_rollouts or on_gpu, say)
        report(part, about | {"architecture": name}, rows, options.output_dir, console)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="few repeats; under five minutes on two cores")
    parser.add_argument(
        "--repeats", type=int, help="rounds, each in random order; medians are reported (default: scorer 3, step 7)"
    )
    parser.add_argument("--micro_batch", type=int, default=8, help="rows of a forward pass of the scorer")
    parser.add_argument(
        "--architecture",
        choices=list(models.ARCHITECTURES),
        help="default: small for scorer, tiny for update and step; qwen3-vl-2b on a GPU",
    )
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU even if there is a GPU")
    parser.add_argument(
        "--canned_rollouts", action="store_true", help="draw rollouts at random instead of sampling (default on a GPU)"
    )
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    return parser.parse_args()


def _scorer(options: argparse.Namespace, model: Any, rate: float, say: Callable[[Any], None]) -> list[dict[str, Any]]:
    shapes, shares, repeats = list(scorer.SHAPES.values()), [0.0, 0.4, 0.7], options.repeats or 3
    if options.quick:
        shapes, shares, repeats = [replace(scorer.SHAPES["paper"], groups=5)], [0.0, 0.4], 1
    return scorer.run(model, shapes, shares, repeats=repeats, micro_batch=options.micro_batch, rate=rate, say=say)


def _step(
    options: argparse.Namespace, architecture: str, device: Any, dtype: Any, canned: bool, say: Callable[[Any], None]
) -> list[dict[str, Any]]:
    tasks = [step.paper_task(5, share, architecture, device, dtype) for share in (0.0, 0.4)]
    if options.quick:
        return step.run(
            tasks, [("grpo", ""), ("cepo", "own_or_mixture")], repeats=options.repeats or 1, canned=canned, say=say
        )
    if not canned:
        tasks.insert(0, step.default_task(8))
    return step.run(tasks, step.METHODS, repeats=options.repeats or 7, canned=canned, say=say)


def _progress(part: str) -> Callable[[dict[str, Any]], None]:
    started = time.perf_counter()

    def say(row: dict[str, Any]) -> None:
        name = " ".join(str(row[key]) for key in LABELS if key in row)
        share = f", zero variance {row['zero_variance']:.0%}" if "zero_variance" in row else ""
        found = f", {row['ratio_to_trl_grpo']:.2f} of TRL's seconds" if "ratio_to_trl_grpo" in row else ""
        print(f"[{time.perf_counter() - started:6.0f} s] {part}: {name}{share}{found}", flush=True)

    return say


# docs/performance.md explains the columns.
COLUMNS = {
    "scorer": {
        "shape": "{shape}",
        "zero variance": "{zero_variance:.0%}",
        "C": "{contexts}",
        "seconds": "{seconds[cepo]:.2f}",
        "reference/cepo": "{ratio_to_reference:.2f}",
        "TRL/cepo": "{ratio_to_trl:.2f}",
        "tokens": "{tokens_forwarded[cepo]:,} of {tokens_forwarded[reference]:,}",
        "/floor": "{tokens_over_floor:.2f}",
        "s/floor": "{seconds_over_floor:.1f}",
        "of matmul": "{share_of_matmul_rate[cepo]:.0%}",
        "MB reference, TRL, cepo": "{memory}",
    },
    "update": {
        "what": "{what}",
        "shape": "{shape}",
        "seconds, whole": "{seconds[whole]:.2f}",
        "of whole": "{of_whole}",
        "peak MB": "{memory}",
    },
    "evidence": {
        "what": "{what}",
        "prefix cache": "{prefix_cache}",
        "tokens": "{tokens:,}",
        "mean |difference|": "{mean_difference:.2g}",
        "wrong signs > 0.01": "{wrong_signs_above_0_01:,} of {above_0_01:,}",
        "wrong signs > 0.1": "{wrong_signs_above_0_1:,} of {above_0_1:,}",
    },
    "step": {
        "shape": "{shape}",
        "zero variance": "{zero_variance:.0%}",
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
    """Write the rows of a part to a JSON file and print them as a table."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")  # before a table can fail
    table = Table(title=f"{part}: medians")
    for column in COLUMNS[part]:
        table.add_column(column, justify="left" if column in LABELS else "right")
    for row in rows:
        held, ratio = row.get("peak_memory", {}), row.get("ratio", {})
        memory = ", ".join(f"{size / 1e6:,.0f}" for size in (held.values() if isinstance(held, dict) else [held]))
        of_whole = ", ".join(f"{name} {value:.2f}" for name, value in ratio.items())
        table.add_row(*(form.format(**row, memory=memory, of_whole=of_whole) for form in COLUMNS[part].values()))
    console.print(table)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
