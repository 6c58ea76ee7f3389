"""The parts of `benchmarks.gpu`."""

import argparse
import gc
import json
import logging
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from cepo.commands import quiet_libraries

from . import evidence, models, scorer, step, update
from .measure import machine
from .scorer import Shape

WAYS = [("grpo", step.WHOLE), ("grpo", ""), ("cepo", "lowest_reward"), ("cepo", "own_or_mixture")]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        device: A GPU; in a rehearsal the CPU if there is none.
        architecture: Name of a model in `models.ARCHITECTURES`.
        groups: Prompts of a step, with 8 rollouts each.
        prompt: Length of a prompt [tokens].
        image: Height and width of an image [patches].
        completion: Mean and standard deviation of the lengths of rollouts [tokens].
        longest: Longest rollout [tokens].
        updates, scorings: Shapes of these parts.
        evidence: Problems, rollouts of each and their longest length [tokens].
    """

    device: torch.device
    dtype: torch.dtype
    architecture: str
    groups: int
    prompt: int
    image: tuple[int, int]
    completion: tuple[int, int]
    longest: int
    updates: list[Shape]
    scorings: list[Shape]
    evidence: tuple[int, int, int]


def recipe_sizes() -> Sizes:
    """Those of recipes/models/qwen3-vl-2b-geometry3k.yaml, with fewer prompts in a step."""
    image = (40, 38)
    return Sizes(
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        architecture="qwen3-vl-2b",
        groups=2,
        prompt=500,
        image=image,
        completion=(1500, 400),
        longest=2048,
        updates=[
            Shape("502 + 250", image, 120, (250, 60), contexts=1, groups=1),
            Shape("502 + 1500", image, 120, (1500, 0), contexts=1, groups=1),
        ],
        scorings=[
            Shape("502 + 250", image, 120, (250, 60), groups=2),
            Shape("502 + 1500", image, 120, (1500, 400), groups=1),
            Shape("502 + 250, 5 contexts", image, 120, (250, 60), contexts=5, groups=1),
        ],
        evidence=(30, 8, 176),
    )


def rehearsal_sizes() -> Sizes:
    on_gpu, image = torch.cuda.is_available(), (4, 4)
    return Sizes(
        device=torch.device("cuda" if on_gpu else "cpu"),
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        architecture="tiny",
        groups=1,
        prompt=40,
        image=image,
        completion=(12, 3),
        longest=16,
        updates=[Shape("14 + 16", image, 8, (8, 2), contexts=1, groups=1)],
        scorings=[Shape("14 + 16", image, 8, (8, 2), groups=1)],
        evidence=(2, 2, 8),
    )


def parts_of(sizes: Sizes, rate: float) -> Iterator[tuple[str, float, Callable[[], Rows]]]:
    """(name, seconds that it needs on an H200 by estimate, function) of each part.

    Args:
        sizes: The sizes.
        rate: Rate of matrix products [FLOP/s].
    """

    def model() -> Any:
        return models.build(sizes.architecture, sizes.device, sizes.dtype)

    def steps(adapters: bool, checkpointing: bool, ways: list[step.Way]) -> Callable[[], Rows]:
        def run() -> Rows:
            lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
            task = step.paper_task(
                sizes.groups,
                0.0,
                sizes.architecture,
                sizes.device,
                sizes.dtype,
                completion=sizes.completion,
                peft_config=lora if adapters else None,
                prompt=sizes.prompt,
                image=sizes.image,
                max_completion_length=sizes.longest,
                bf16=sizes.dtype == torch.bfloat16,
                gradient_checkpointing=checkpointing,
                optim="adamw_torch",
            )
            return step.run([task], ways, repeats=1, canned=True, say=_quiet)

        return run

    problems, rollouts, length = sizes.evidence
    yield (
        "evidence in bfloat16",
        60,
        lambda: evidence.run(sizes.device, prompts=problems, rollouts=rollouts, length=length, say=_quiet),
    )
    yield "steps, LoRA, checkpointing", 100, steps(True, True, [*WAYS, ("rlsd", ""), ("opsd", "")])
    yield (
        "update and sampling",
        120,
        lambda: update.run(model(), rollouts=8, repeats=1, say=_quiet, shapes=sizes.updates),
    )
    yield (
        "teacher scoring",
        60,
        lambda: scorer.run(model(), sizes.scorings, [0.0], repeats=2, micro_batch=8, rate=rate, say=_quiet),
    )
    yield "steps, LoRA, no checkpointing", 50, steps(True, False, [WAYS[1], WAYS[-1]])
    yield "steps, all weights, checkpointing", 60, steps(False, True, [WAYS[1], WAYS[-1]])


def run(options: argparse.Namespace) -> int:
    """Run the parts that fit into the time; returns the exit status."""
    began = time.perf_counter()
    quiet_libraries()
    warnings.filterwarnings("ignore")
    logging.getLogger("trl").setLevel(logging.ERROR)
    if not options.rehearse and not torch.cuda.is_available():
        print("no GPU; --rehearse runs every part small, on the CPU")
        return 2
    warned = _Warnings()
    logging.getLogger("cepo").addHandler(warned)
    sizes = rehearsal_sizes() if options.rehearse else recipe_sizes()
    about = {"command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])}
    about |= machine(sizes.device, sizes.dtype)
    if sizes.device.type == "cuda":
        about["memory_gib"] = round(torch.cuda.get_device_properties(sizes.device).total_memory / 2**30, 1)
    report: dict[str, Any] = {"machine": about, "parts": {}}

    def left() -> float:
        return options.seconds - (time.perf_counter() - began)

    def stop(*_: Any) -> None:
        raise TimeoutError(f"the limit of {options.seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    for name, needs, part in parts_of(sizes, about["matmul_gflops"] * 1e9):
        if options.parts and not any(wanted in name for wanted in options.parts):
            continue
        found: dict[str, Any] = {}
        started, before = time.perf_counter(), left()
        if before < (1 if options.rehearse else needs):
            found["skipped"] = f"{before:.0f} s left, {needs} needed"
        else:
            signal.setitimer(signal.ITIMER_REAL, before)
            try:
                found["rows"] = part()
            except Exception as error:  # the other parts run; the status and the report say so
                traceback.print_exc()
                found["error"] = f"{type(error).__name__}: {error}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        found |= {"seconds": round(time.perf_counter() - started, 1), "warnings": warned.taken()}
        report["parts"][name] = found
        _write(report, options.output_dir)
        outcome = found.get("error") or found.get("skipped") or "done"
        print(f"[{time.perf_counter() - began:5.0f} s] {name}: {outcome}", flush=True)
        gc.collect()
        if sizes.device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"written: {options.output_dir / 'gpu.json'}, gpu.md")
    return int(any("error" in found for found in report["parts"].values()))


class _Warnings(logging.Handler):
    """Collects warnings, such as the reason why prompts are not shared."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._lines[record.getMessage()] = None

    def taken(self) -> list[str]:
        lines = list(self._lines)
        self._lines.clear()
        return lines


def _quiet(row: Any) -> None:
    """No progress lines."""


def _write(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = ["# One GPU", "", *(f"- {name}: {value}" for name, value in report["machine"].items())]
    for name, part in report["parts"].items():
        lines += ["", f"## {name} ({part['seconds']} s)", ""]
        lines += [f"{kind}: {part[kind]}" for kind in ("error", "skipped") if kind in part]
        rows = [dict(_flat(row)) for row in part.get("rows", [])]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if columns:
            lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(row.get(column, '') for column in columns)} |" for row in rows]
        lines += ["", *(f"- warning: {line}" for line in part["warnings"])] if part["warnings"] else []
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def _flat(row: Mapping[str, Any], prefix: str = "", memory: bool = False) -> Iterator[tuple[str, str]]:
    """Columns and cells of a row, with memory in GiB."""
    for name, value in row.items():
        is_memory = memory or name.endswith("memory")
        column = prefix + name.replace("_", " ") + (" [GiB]" if is_memory and not isinstance(value, Mapping) else "")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name.replace('_', ' ')} ", is_memory)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (
                column,
                f"{value / 2**30:.2f}" if is_memory else f"{value:.4g}" if isinstance(value, float) else f"{value:,}",
            )
        elif isinstance(value, str | bool):
            yield column, str(value)
