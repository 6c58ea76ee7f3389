"""Run by test_distributed.py under torchrun: groups of four rollouts that span two processes.

The rollouts of process 0 are right, those of process 1 are wrong, so every r- has to come from the other process.
"""

import json
import os
import sys
from pathlib import Path

import torch

import cepo.trainer
from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path

rank = int(os.environ["RANK"])
cepo.trainer.final_answer = lambda text: f"{rank}"

seen = []


def verdicts(completions, **kwargs):
    return [float(rank == 0)] * len(completions)


class Spy(CEPOTrainer):
    def _references(self):
        attempts, references = super()._references()
        seen.extend(reference.negatives for reference in references)
        return attempts, references


folder = Path(sys.argv[1])
args = CEPOConfig(
    output_dir=str(folder / "out"),
    max_steps=2,
    per_device_train_batch_size=2,
    num_generations=4,
    max_completion_length=12,
    bf16=False,
    gradient_checkpointing=False,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
trainer = Spy(policy_path(), verdicts, args, load_figures("train", 8))
assert trainer.accelerator.num_processes == 2
trainer.train()
checksum = sum(parameter.detach().double().abs().sum() for parameter in trainer.model.parameters()).item()
rows = [entry for entry in trainer.state.log_history if "loss" in entry]
report = {"rank": rank, "negatives": seen, "checksum": checksum, "scored": [row["cepo/rows_scored"] for row in rows]}
(folder / f"rank-{rank}.json").write_text(json.dumps(report))
torch.distributed.barrier()
