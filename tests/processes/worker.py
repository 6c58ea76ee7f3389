"""Runs situations and writes their results; run by test_processes.py, with or without torchrun.

    python worker.py FOLDER JSON-FILE-OF-SITUATIONS PATIENCE

Each process writes FOLDER/NUMBER/rank-N.pt. Completions are assigned by the index in the global batch, so that they are
the same for any number of processes. A situation that takes longer than PATIENCE [s] ends the process, with a traceback
of each thread in FOLDER/rank-N.trace.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parent))

import torch
import trl.trainer.grpo_trainer
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from situations import LONGEST, Situation
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLForConditionalGeneration,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar as disable_loading_bar

from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path
from cepo.data.saved import load_saved
from cepo.references.extraction import reference_answer
from cepo.scoring.pipeline import Pipeline

WORLD, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


class Scripted(CEPOTrainer):
    """Uses scripted rollouts, and records references, token advantages and gradients."""

    def __init__(self, *args, situation, **kwargs):
        self.situation, self.generated = situation, 0
        self.references, self.placed, self.gradients = {}, {}, []
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.add_callback(Gradients(self))

    def first(self, count):
        """Index of this process's first rollout in the global batch."""
        return self.accelerator.process_index * count

    def script(self, count):
        batch = self.situation.batches[(self.generated - 1) % len(self.situation.batches)]
        return batch[self.first(count) : self.first(count) + count]

    def _generate_and_score_completions(self, inputs):
        self.rows, self.generated = inputs, self.generated + 1
        if self.situation.hangs == RANK:
            time.sleep(3600)
        output = super()._generate_and_score_completions(inputs)
        output["row"] = torch.arange(self.first(len(inputs)), self.first(len(inputs)) + len(inputs))
        return output

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        completions = []
        for row, one in zip(self.rows, self.script(len(prompt_ids)), strict=True):
            text = one.text.replace("SOLUTION", reference_answer(row["solution"]))
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if one.ends:
                completions.append([*ids, self._tokenizer.eos_token_id])
            else:
                completions.append((ids * LONGEST)[:LONGEST])
        return completions, None

    def _with_token_advantages(self, batch):
        placed = super()._with_token_advantages(batch)
        self._note(batch, placed["advantages"])
        return placed

    def _distillation_batch(self, inputs):
        self._note(inputs, torch.zeros(len(inputs["row"])))
        for place, ids, mask in zip(inputs["row"].tolist(), inputs["teacher_ids"], inputs["teacher_mask"], strict=True):
            self.references[f"{self.generated}:{place}:hinted"] = ids[mask.bool()].tolist()
        return super()._distillation_batch(inputs)

    def _note(self, batch, advantages):
        count = batch["completion_mask"].sum(dim=1).tolist()
        for index, place in enumerate(batch["row"].tolist()):
            own = advantages[index]
            own = own[: count[index]] if own.dim() else own.expand(count[index])
            evidence = torch.zeros(0)
            if "evidence" in batch:
                evidence = batch["evidence"][index, : count[index]]
            key = f"{self.state.global_step}:{place}"
            self.placed[key] = (own.clone(), evidence.clone())

    def note_references(self, groups, references):
        """Record the references of each rollout."""
        places = [
            group.number * self.num_generations + index
            for group in groups
            for index, rollout in enumerate(group.rollouts)
            if rollout.local
        ]
        for place, found in zip(places, references, strict=True):
            self.references[f"{self.generated}:{place}"] = (
                found.positive,
                found.negatives,
                found.fallback,
                found.sources,
            )


class Gradients(TrainerCallback):
    """Records the gradients of the optimizer."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trained = [p for p in self.trainer.model.parameters() if p.requires_grad]
        parts = [torch.zeros(p.numel()) if p.grad is None else p.grad.detach().flatten() for p in trained]
        self.trainer.gradients.append(torch.cat(parts).clone())


def in_turns(batch):
    """Replaces TRL's random shuffling: every other rollout goes to the first micro-batch.

    Micro-batches then have the same rollouts for any number of processes.
    """
    count = len(next(values for values in batch.values() if values is not None))
    order = sorted(range(count), key=lambda row: row % 2)

    def turned(values):
        if values is None or (isinstance(values, torch.Tensor) and values.ndim == 0):
            return values
        return values[order] if isinstance(values, torch.Tensor) else [values[row] for row in order]

    return {name: turned(values) for name, values in batch.items()}


def models(folder):
    """Folders of two text and two image models with the policy's vocabulary."""
    processor, tokenizer = AutoProcessor.from_pretrained(policy_path()), AutoTokenizer.from_pretrained(policy_path())
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    found = {}
    for seed, name in enumerate(("text", "image", "text-teacher", "image-teacher")):
        torch.manual_seed(seed)
        if name.startswith("text"):
            config = Qwen3Config(
                vocab_size=512,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                max_position_embeddings=512,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                initializer_range=0.15,  # far from uniform, for strong evidence
                tie_word_embeddings=seed > 0,
                **small,
            )
            model, files = Qwen3ForCausalLM(config), tokenizer
        else:
            config = AutoConfig.from_pretrained(policy_path())
            for key, value in {**small, "initializer_range": 0.15}.items():
                setattr(config.text_config, key, value)
            config.vision_config.out_hidden_size = 32
            config.vision_config.depth = 2
            model, files = Qwen3VLForConditionalGeneration(config), processor
        found[name] = folder / name
        model.save_pretrained(found[name])
        files.save_pretrained(found[name])
        settings = found[name] / "tokenizer_config.json"
        if name.startswith("text"):  # a tokenizer without a processor
            plain = json.loads(settings.read_text())
            plain.pop("processor_class", None)
            settings.write_text(json.dumps(plain))
    return found


def problems(model):
    """Figures, or the same as text."""
    figures = load_figures("train", 24, steps=(2, 3))
    if model == "image":
        return figures

    def in_words(row):
        numbers = " ".join(str(number) for number in (row["start"], *row["labels"]))
        return {"prompt": [{"role": "user", "content": f"{row['prompt'][0]['content']} {numbers}"}]}

    return figures.map(in_words).remove_columns("image")


def prepare(situation, folder, paths, data):
    steps = situation.options.get("steps_per_generation", 1)
    options = dict(situation.options)
    if situation.method == "distilled_rl":
        options["teacher_model_name_or_path"] = str(paths[f"{situation.model}-teacher"])
    args = CEPOConfig(
        **{
            "output_dir": str(folder),
            "method": situation.method,
            "max_steps": 2 * steps * options.get("num_iterations", 1) // options.get("gradient_accumulation_steps", 1),
            "per_device_train_batch_size": situation.rollouts // WORLD // steps,
            "num_generations": situation.size,
            "max_completion_length": LONGEST,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
            "optim": "sgd",
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "num_completions_to_print": 0,
            **options,
        }
    )

    def right(completions, **kwargs):
        if situation.fails == RANK:
            raise RuntimeError(f"the verifier of process {RANK} broke")
        return [one.verdict for one in trainer.script(len(completions))]

    def style(completions, **kwargs):
        return [one.style for one in trainer.script(len(completions))]

    adapters = None
    if situation.lora:
        adapters = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)  # for the initialization of adapters
    trainer = Scripted(
        str(paths[situation.model]),
        [right, style] if situation.style else right,
        args,
        data[situation.model],
        peft_config=adapters,
        situation=situation,
    )
    if adapters is not None:  # B is zero, and with it A's gradient
        torch.manual_seed(1)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return trainer


def go(situation, folder, paths, data):
    """The result of a situation: references, token advantages, gradients and log; or the reason of a refusal."""
    try:
        trainer = prepare(situation, folder, paths, data)
    except ValueError as error:
        return {"refused": str(error)}
    assert trainer.accelerator.num_processes == WORLD
    plan = Pipeline.plan

    def noted(pipeline, options, groups, wanted=None):
        found = plan(pipeline, options, groups, wanted)
        if wanted is not None:  # a credit page asks for all rollouts
            trainer.note_references(groups, found[0])
        return found

    Pipeline.plan = noted
    try:
        trainer.train()
    finally:
        Pipeline.plan = plan
    saved = load_saved(str(folder)).groups if trainer.args.log_completions else None
    return {
        "references": trainer.references,
        "placed": trainer.placed,
        "gradients": trainer.gradients,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "saved": saved,
        "pages": len(list(folder.glob("credit/*.html"))),
        "weights": sum(p.detach().double().abs().sum() for p in trainer.model.parameters()).item(),
    }


def main():
    folder, patience = Path(sys.argv[1]), float(sys.argv[3])
    situations = [Situation.of(plain) for plain in json.loads(Path(sys.argv[2]).read_text())]
    trl.trainer.grpo_trainer.shuffle_sequence_dict = in_turns
    disable_progress_bar()
    disable_loading_bar()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{RANK}.trace").open("w") as trace:
        paths = models(folder / f"models-{RANK}")
        data = {name: problems(name) for name in ("text", "image")}
        for number, situation in enumerate(situations):
            faulthandler.dump_traceback_later(patience, file=trace)
            # The other processes get time for their traces.
            watchdog = threading.Timer(patience + 3, os._exit, [70])
            watchdog.daemon = True
            watchdog.start()
            own = folder / str(number)
            own.mkdir(exist_ok=True)
            torch.save(go(situation, own, paths, data), own / f"rank-{RANK}.pt")
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            faulthandler.cancel_dump_traceback_later()
            watchdog.cancel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
