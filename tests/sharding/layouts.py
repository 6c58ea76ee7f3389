"""Environments of layouts, and the cases that are trained in each."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent

_FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "CEPO_TEST_LAYOUT": "FSDP",
}
_DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "CEPO_TEST_LAYOUT": "DEEPSPEED"}
LAYOUTS: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": _FSDP,
    "zero2": {**_DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {
        **_DEEPSPEED,
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    },
}

_EMA = {"teacher": "ema", "teacher_ema_decay": 0.5, "max_steps": 3}
_METHODS = ("grpo", "cepo", "cepo_additive", "rlsd", "rlcsd", "sdar", "rlrt", "cscr", "pbsd", "distilled_rl")
CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in _METHODS},
    "grpo-untied": {"method": "grpo", "untied": True},
    "cepo-lora": {"lora": True},
    "cepo-untied-lora": {"untied": True, "lora": True},
    "cepo-whole": {"shared_prompt": "never"},
    "cepo-idle": {"idle": True},
    "cepo-idle-whole": {"idle": True, "shared_prompt": "never"},
    "cepo-checkpointing": {"gradient_checkpointing": True},
    "cepo-initial": {"teacher": "initial", "max_steps": 3},
    "cepo-synced": {"teacher": "synced", "teacher_sync_steps": 2, "max_steps": 3},
    "cepo-ema": _EMA,
    "cepo-ema-untied": {**_EMA, "untied": True},
    "cepo-ema-lora": {**_EMA, "lora": True},
    "opsd": {"method": "opsd"},
    "opsd-live": {"method": "opsd", "teacher": "policy"},
    "opsd-untied": {"method": "opsd", "untied": True},
    "opsd-lora": {"method": "opsd", "lora": True},
    "sdpo": {"method": "sdpo"},
    "sdpo-untied": {"method": "sdpo", "untied": True},
    "sdpo-untied-lora": {"method": "sdpo", "untied": True, "lora": True},
    "sdpo-idle": {"method": "sdpo", "idle": True},
    # Checkpoints after every step; `resumed` starts from the second.
    "saved": {**_EMA, "max_steps": 4, "save_strategy": "steps", "save_steps": 1},
    "resumed": {**_EMA, "max_steps": 4, "resume": "saved/checkpoint-2"},
}
# Token values need whole groups on each process: three processes have one group each, two would split one.
LABELED = {name: {"method": name} for name in ("oracle", "vppo")}
# The loss of the first process is NaN in the second step.
SPOILT = {"spoilt": {**_EMA, "spoil": [1], "lr_scheduler_type": "constant"}}


@dataclass(frozen=True)
class Outcome:
    """The results of a case, from all processes.

    Attributes:
        advantages, evidence: Token advantages and evidence by (step, index in the global batch).
        history: TRL's log.
        weights: Saved weights.
        folder: Folder of the model.
    """

    advantages: dict[tuple[int, int], torch.Tensor]
    evidence: dict[tuple[int, int], torch.Tensor]
    history: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    folder: Path


def run(folder: Path, cases: dict[str, Any], layout: str = "", processes: int = 1) -> None:
    """Train the cases in one layout.

    Raises:
        RuntimeError: With the end of the output, if a process failed.
    """
    done = launch("run.py", [str(folder), json.dumps(cases)], layout, processes)
    # A process may abort in gloo's shutdown, after the results are written.
    finished = all((folder / name / "rank-0.pt").exists() for name in cases)
    if done.returncode and not finished:
        raise RuntimeError(f"{layout or 'one process'}: {done.stderr[-6000:]}")


def launch(script: str, arguments: list[str], layout: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in a layout, by torchrun if there are several processes."""
    command = [sys.executable, str(HERE / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **LAYOUTS.get(layout, {})}
    if sys.platform == "linux":  # works without network
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    # DeepSpeed finds its build tools beside this Python.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1400, check=False)


@cache
def outcome(folder: Path, name: str) -> Outcome:
    """The results of a case."""
    advantages, evidence, history = {}, {}, []
    for file in sorted((folder / name).glob("rank-*.pt")):
        found = torch.load(file)
        history = history or found["history"]
        for step, row, advantage, own in found["noted"]:
            advantages[step, row], evidence[step, row] = advantage, own
    saved = [*(folder / name).glob("adapter_model.safetensors"), *(folder / name).glob("model.safetensors")]
    return Outcome(advantages, evidence, history, load_file(saved[0]), folder / name)
