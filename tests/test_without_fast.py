"""The package works without `fast/`: slower, with the same numbers to rounding."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cepo

STEP = """
import json, sys
import torch
from cepo import CEPOConfig, CEPOTrainer, evaluate, load_figures, policy_path
from cepo.acceleration import fast
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling

assert (fast() is None) == (sys.argv[2] == "without")


def half(completions, **kwargs):
    return [0.0, 1.0] * (len(completions) // 2)


options = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 24, "max_steps": 2}
options |= {"logging_steps": 1, "report_to": "none", "save_strategy": "no", "optim": "sgd", "learning_rate": 0.1}
found = {}
for method in ("grpo", "cepo", "rlsd", "opsd"):
    torch.manual_seed(0)
    args = CEPOConfig(sys.argv[1], method=method, seed=0, **options)
    trainer = CEPOTrainer(policy_path(), half, args, load_figures("train", 16))
    trainer.train()
    found[method] = [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]
model, processor = load_policy(policy_path())
found["accuracy"] = evaluate(model, processor, load_figures("test", 8), Sampling(160, 1.0), samples=2).correct
print("RESULT", json.dumps(found))
"""


def run(folder, tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(tmp_path / kind), kind],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("RESULT"))


def test_numbers_without_the_folder(tmp_path):
    source = Path(cepo.__file__).parents[1]
    without = tmp_path / "src"
    shutil.copytree(source, without, ignore=shutil.ignore_patterns("fast", "__pycache__"))
    assert not (without / "cepo" / "fast").exists()
    with_fast, without_fast = run(source, tmp_path, "with"), run(without, tmp_path, "without")
    assert with_fast["accuracy"] == without_fast["accuracy"]
    for method in ("grpo", "cepo", "rlsd", "opsd"):
        for one, other in zip(with_fast[method], without_fast[method], strict=True):
            for a, b in zip(one, other, strict=True):
                assert abs(a - b) <= 1e-4 + 2e-3 * abs(b), (method, with_fast[method], without_fast[method])
