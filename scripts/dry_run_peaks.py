"""The estimates of `cepo train --dry_run` beside what the shipped policy was seen to hold, phase by phase.

    python scripts/dry_run_peaks.py

Two steps of each run, in a process of its own, on this machine; the second counts. What is compared is what tensors
hold at most above what they held before the phase, as torch's profiler notes each that is made and freed, at the
lengths that the rollouts really had.
"""

import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
RUNS = {
    "grpo": {"method": "grpo"},
    "grpo, checkpointing": {"method": "grpo", "gradient_checkpointing": True},
    "cepo": {"method": "cepo"},
    "cepo, checkpointing": {"method": "cepo", "gradient_checkpointing": True},
    "cepo, LoRA": {"method": "cepo", "lora": True},
    "opsd": {"method": "opsd"},
}


def measure(case: dict) -> dict:
    """Peaks and estimates of one run [bytes]."""
    import torch
    from peft import LoraConfig

    from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path
    from cepo.planning.memory import PHASES, Layout, Lengths, memory_of
    from cepo.planning.models import Skeleton, find_config
    from cepo.tasks.figures import figures_reward

    lora = case.pop("lora", False)
    adapters = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    phases = [phase for phase in PHASES if phase != "accuracy"]
    peaks = dict.fromkeys(phases, 0.0)
    seen = {}

    class Watched(CEPOTrainer):
        def _watch(self, phase, work):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as noted:
                found = work()
            made = [event for event in noted.profiler.kineto_results.events() if event.name() == "[memory]"]
            held = peak = 0
            for event in sorted(made, key=lambda event: event.start_ns()):
                held += event.nbytes()
                peak = max(peak, held)
            peaks[phase] = peak
            return found

        def _generate(self, prompts):
            return self._watch("sampling", lambda: super(Watched, self)._generate(prompts))

        def _find_evidence(self, batch):
            return self._watch("teachers", lambda: super(Watched, self)._find_evidence(batch))

        def _prepare_inputs(self, inputs):
            batch = super()._prepare_inputs(inputs)
            seen["prompt"] = max(seen.get("prompt", 0), batch["prompt_ids"].shape[1])
            seen["completion"] = max(seen.get("completion", 0), batch["completion_ids"].shape[1])
            self._prepared = batch
            return batch

        def training_step(self, model, inputs, num_items_in_batch):
            model.train()  # as the trainer does, before it samples
            prepared = self._prepare_inputs(inputs)
            self._prepare_inputs = lambda _: prepared
            try:
                return self._watch(
                    "update", lambda: super(Watched, self).training_step(model, inputs, num_items_in_batch)
                )
            finally:
                del self._prepare_inputs

    with tempfile.TemporaryDirectory() as folder:
        args = CEPOConfig(
            output_dir=folder,
            max_steps=2,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=176,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            freeze_vision_tower=not lora,
            **{"gradient_checkpointing": False, **case},
        )
        if not args.uses_divergence_loss:
            args.skip_zero_advantage = False  # a whole batch, as the estimate has it
        trainer = Watched(policy_path(), figures_reward, args, load_figures("train", 100), peft_config=adapters)
        trainer._skips = False
        trainer.train()
    skeleton = Skeleton.of(
        find_config(policy_path())[0], torch.float32, adapters, freeze_vision_tower=args.freeze_vision_tower
    )
    lengths = Lengths(seen["prompt"], 16, seen["completion"])
    memory = memory_of(skeleton, args, Layout(), lengths)
    estimates = {
        phase: sum(part.bytes for part in memory.parts if phase in part.phases and len(part.phases) < len(PHASES))
        for phase in phases
    }
    if args.uses_divergence_loss:  # its teacher reads within the update
        estimates["update"] += estimates.pop("teachers")
        peaks.pop("teachers")
    elif not args.method_spec.needs_teachers:
        peaks.pop("teachers"), estimates.pop("teachers")
    return {"peaks": peaks, "estimates": estimates}


def main() -> None:
    if len(sys.argv) > 1:
        print("RESULT", json.dumps(measure(json.loads(sys.argv[1]))))
        return
    print("| run | phase | estimated, MB | seen, MB | ratio |\n|---|---|---|---|---|")
    for name, case in RUNS.items():
        done = subprocess.run([sys.executable, __file__, json.dumps(case)], capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        if not lines:
            sys.exit(done.stderr)
        found = json.loads(lines[0].removeprefix("RESULT"))
        for phase, seen in found["peaks"].items():
            estimate = found["estimates"][phase]
            print(
                f"| {name} | {phase} | {estimate / 1e6:,.0f} | {seen / 1e6:,.0f} | {estimate / seen:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
