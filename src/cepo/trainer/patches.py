"""Changes to foreign libraries without which numbers or resuming would break. Those for speed are in `fast/`."""

import torch
from transformers import TrainingArguments


def name_cpu_without_index(args: TrainingArguments) -> None:
    """Let several processes on CPUs load checkpoints.

    accelerate names the device of each process `cpu:N`, transformers passes that to torch.load, which does not know it.
    """
    if args.device.type == "cpu":
        args._setup_devices = torch.device("cpu")  # a cached property
