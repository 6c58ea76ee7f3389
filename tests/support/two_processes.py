"""Two processes in three situations, run by test_distributed.py under torchrun.

spanning: groups of four rollouts, two on each process. Rollouts of process 0 are correct, those of process 1 incorrect,
so that every r- comes from the other process. idle: groups of two, and only the first group of process 0 has variance,
so that process 1 has no rollout to score or train on, and makes the same passes. taught: the same with SDPO, where only
one rollout of process 0 has a teacher.
"""

import json
import os
import sys
from pathlib import Path

import torch

import cepo.trainer.cepo_trainer
from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path
from cepo.scoring.pipeline import Pipeline

rank = int(os.environ["RANK"])
folder = Path(sys.argv[1])


def spanning(completions, **kwargs):
    return [float(rank == 0)] * len(completions)


def idle(completions, **kwargs):
    return [float(rank == 0 and row == 0) for row in range(len(completions))]


class Spy(CEPOTrainer):
    """Records the negatives, the scoring passes and the rows of the update."""

    def __init__(self, *args, **kwargs):
        self.negatives, self.passes, self.updated = [], [], []
        super().__init__(*args, **kwargs)

    def _find_evidence(self, batch):
        calls = []

        def noted(pipeline, *args):
            found = plan(pipeline, *args)
            self.negatives += [reference.negatives for reference in found[0]]
            return found

        plan, Pipeline.plan = Pipeline.plan, noted
        hook = self.model.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append("pixel_values" in kwargs), with_kwargs=True
        )
        try:
            return super()._find_evidence(batch)
        finally:
            Pipeline.plan = plan
            hook.remove()
            self.passes.append(calls)

    def _get_per_token_logps_and_entropies(self, model, input_ids, *args, **kwargs):
        self.updated.append(len(input_ids))
        return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)


def run(name, reward, rows, num_generations, **options):
    cepo.trainer.cepo_trainer.final_answer = lambda text, extractor: f"{rank}"
    args = CEPOConfig(
        output_dir=str(folder / name),
        max_steps=2,
        per_device_train_batch_size=rows,
        num_generations=num_generations,
        max_completion_length=12,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="tensorboard",
        use_cpu=True,
        credit_page_steps=1,
        log_completions=True,
        num_completions_to_print=0,
        teacher_batch_tokens=120,  # several passes, so that the processes would differ
        **options,
    )
    trainer = Spy(policy_path(), reward, args, load_figures("train", 8))
    assert trainer.accelerator.num_processes == 2
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "negatives": trainer.negatives,
        "passes": trainer.passes,
        "updated": trainer.updated,
        "right": [entry["cepo/correct"] for entry in history],
        "scored": [entry["cepo/rows_scored"] for entry in history],
        "divergence": [entry.get("cepo/divergence") for entry in history],
        "grad_norm": [entry["grad_norm"] for entry in history],
        "checksum": sum(p.detach().double().abs().sum() for p in trainer.model.parameters()).item(),
    }


report = {
    "spanning": run("spanning", spanning, 2, 4),
    "idle": run("idle", idle, 4, 2),
    "taught": run("taught", idle, 4, 2, method="sdpo", teacher_ema_decay=0.5),
}
(folder / f"rank-{rank}.json").write_text(json.dumps(report))
torch.distributed.barrier()
