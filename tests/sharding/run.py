"""Trains cases on recorded rollouts, and writes the results; run by test_sharding.py, with or without torchrun.

    python run.py FOLDER JSON-OF-CASES

A case is a name and options of the trainer, and further `lora`, `untied` (an untied head), `idle` (only one group has
variance), `resume` (a checkpoint of another case), `spoil` (steps, from 0, in which the first process's loss is NaN).
Rollouts are worked solutions with mistakes, seeded by their index in the global batch, so that they are the same for
any number of processes. Each process writes FOLDER/CASE/rank-N.pt; the model is saved in FOLDER/CASE.
"""

import json
import os
import sys
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2]))

import shim  # noqa: F401
import torch
from experiments.erroneous_solutions import work
from peft import LoraConfig
from transformers import AutoModelForImageTextToText

from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path
from cepo.tasks.figures import problem_of
from cepo.tasks.figures.solutions import write_solution
from cepo.tasks.figures.verifier import figures_reward

ROLLOUTS, GROUP = 12, 4


class Recorded(CEPOTrainer):
    """Uses recorded rollouts, and records the inputs of the loss."""

    def __init__(self, *args, **kwargs):
        self.noted = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self.rows = inputs
        output = super()._generate_and_score_completions(inputs)
        first = self.accelerator.process_index * len(inputs)
        output["row"] = torch.arange(first, first + len(inputs))
        return output

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        first, step = self.accelerator.process_index * len(prompt_ids), self.state.global_step
        completions = []
        for place in range(len(prompt_ids)):
            rng = Random(f"{step}:{first + place}")
            problem = problem_of(self.rows[place])
            # With `idle`, only the first group has incorrect rollouts.
            wrong = 0.5 if (first + place) // GROUP == 0 or not self.idle else 0.0
            text = write_solution(work(problem, rng, error_rate=wrong), rng)
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            completions.append([*ids, self._tokenizer.eos_token_id])
        return completions, None

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        bad = self.accelerator.process_index == 0 and self.state.global_step in self.spoil
        return loss * float("nan") if bad else loss

    def _with_token_advantages(self, batch):
        placed = super()._with_token_advantages(batch)
        self._note(placed, placed["advantages"])
        return placed

    def _note(self, batch, advantages):
        for index, row in enumerate(batch["row"].tolist()):
            count = int(batch["completion_mask"][index].sum())
            own = advantages[index]
            own = own[:count] if own.dim() else own.expand(count)
            evidence = batch["evidence"][index, :count] if "evidence" in batch else torch.zeros(count)
            self.noted.append((self.state.global_step, row, own.clone(), evidence.clone()))


def policy(folder, untied):
    """The shipped policy, or the same with an untied head."""
    if not untied:
        return policy_path()
    if not folder.exists() and os.environ.get("RANK", "0") == "0":
        from transformers import AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(policy_path())
        embedding = model.get_input_embeddings().weight
        for config in (model.config, model.config.text_config):
            config.tie_word_embeddings = False
        head = torch.nn.Linear(embedding.shape[1], embedding.shape[0], bias=False)
        head.weight.data = embedding.detach().clone() * 1.1
        model.lm_head = head
        model.save_pretrained(folder)
        AutoProcessor.from_pretrained(policy_path()).save_pretrained(folder)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return str(folder)


def train(folder, name, case):
    case = dict(case)
    lora, untied, idle = case.pop("lora", False), case.pop("untied", False), case.pop("idle", False)
    resume, steps, spoil = case.pop("resume", None), case.pop("max_steps", 2), case.pop("spoil", [])
    if case.get("method") == "distilled_rl":
        case["teacher_model_name_or_path"] = policy_path()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = CEPOConfig(
        output_dir=str(folder / name),
        max_steps=steps,
        per_device_train_batch_size=ROLLOUTS // world,
        num_generations=GROUP,
        max_completion_length=200,
        bf16=False,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        seed=3,
        learning_rate=1e-3,
        teacher_batch_tokens=600,  # several passes, whose number differs between processes
        **{
            "gradient_checkpointing": False,
            "method": "cepo",
            "optim": "adamw_torch",
            "save_strategy": "no",
            **case,
        },
    )
    adapters = None
    if lora:
        adapters = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = policy(folder.parent / "untied", untied)
    torch.manual_seed(0)  # for the initialization of adapters
    trainer = Recorded(model, figures_reward, args, load_figures("train", 24, steps=(2, 3)), peft_config=adapters)
    assert trainer.accelerator.num_processes == world
    trainer.idle, trainer.spoil = idle, spoil
    kind = os.environ.get("CEPO_TEST_LAYOUT", "NO" if world == 1 else "MULTI_CPU")
    assert trainer.accelerator.distributed_type == kind, trainer.accelerator.distributed_type
    trainer.train(resume_from_checkpoint=None if resume is None else str(folder / resume))
    trainer.save_model(args.output_dir)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    rank = trainer.accelerator.process_index
    found = {"noted": trainer.noted, "history": history, "shares": trainer._sharing.shares}
    torch.save(found, folder / name / f"rank-{rank}.pt")
    trainer.accelerator.wait_for_everyone()
    return trainer


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, case in json.loads(sys.argv[2]).items():
        train(folder, name, case)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
