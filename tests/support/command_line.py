"""The command line on small inputs."""

import sys

SMALL = [
    "--max_steps=2",
    "--per_device_train_batch_size=8",
    "--num_generations=4",
    "--max_completion_length=24",
    "--figures_problems=8",
]


EVAL = ["--eval_problems=8", "--eval_samples=2", "--eval_sampled_problems=3"]


def command(*arguments):
    return [sys.executable, "-m", "cepo.cli", *arguments]
