"""`cepo train --dry_run`: check options and data, and estimate FLOPs and memory, without weights, GPU or network."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from datasets import Dataset
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table
from trl import ModelConfig, get_peft_config

from ..data.checks import check_dataset, check_image_sizes
from ..data.embedded import EMBEDDED, policy_of
from ..data.errors import LoadingError
from ..data.lengths import prompt_length
from ..data.loading import looks_like_path
from ..data.models import load_processor
from ..data.rewards import load_reward_funcs, need_solutions
from ..data.sampling import check_special_tokens
from ..inspection.tables import plain_table
from ..planning.estimate import PHASES, SHARDS, Plan, at, peak
from ..planning.models import Sizes, find_config
from ..trainer.arguments import CommandLine, TrainArguments, load_data, parse
from ..trainer.cepo_config import CEPOConfig
from ..trainer.validation import NO_FSDP1, check_whole_groups, validate_data
from .launch import accelerate_options

GIB = 2**30
DEVICES = "24 / 48 / 80"  # GiB
# Tokens of prompts that are not on this machine, and of the text in prompts with images.
_ASSUMED_PROMPT, _ASSUMED_TEXT = 512, 128
_ROWS = 100  # prompts that are tokenized


@dataclass
class DryRun:
    """The result of the checks: a description of the run with skipped checks, problems, and the estimate."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    plan: Plan | None = None

    def say(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn an error into a problem."""
        try:
            yield
        except (ValueError, TypeError, OSError, ImportError) as error:
            problem = str(error).strip() or type(error).__name__
            if problem not in self.problems:  # two checks may find the same row
                self.problems.append(problem)

    def report(self, console: Console) -> int:
        """Print all; the exit status is 2 if there is a problem."""
        for name, text in self.lines:
            console.print(f"{name:<13}{text}")
        if self.plan is not None:
            console.print(_table(self.plan), soft_wrap=False)
        for text in self.problems:
            console.print(f"problem: {text}")
        if not self.problems:
            console.print("no problem found")
        return 2 if self.problems else 0


def dry_run(line: CommandLine) -> DryRun:
    """Check a run, and estimate its FLOPs and memory."""
    # The libraries read HF_HUB_OFFLINE when they are imported, before any option is parsed.
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    found = DryRun()
    layout = int(os.environ.get("WORLD_SIZE", "1")), "none", "ddp"
    if line.more_flags or line.more_config:
        with found.collecting():
            layout = _layout(line, found)
    # A machine without GPU checks the options of a run on GPUs, whose default is bf16.
    on_gpu = line.options.bf16 is None and line.options.use_cpu is None and line.options.dataset_name not in EMBEDDED
    fallback = {} if torch.accelerator.is_available() or line.options.use_cpu is not None else {"use_cpu": True}
    processes, shards, engine = layout
    known = replace(line, more_flags=[], more_config=[])
    script_args, args, model_args = parse(known, processes=processes, fallback=fallback)
    args.bf16 = args.bf16 or on_gpu
    found.say("processes", f"{processes} ({engine}), sharded: {shards}")
    found.say("method", f"{args.method}, seed {args.seed}")
    found.say(
        "step",
        f"{args.generation_batch_size // args.num_generations} prompts x {args.num_generations} rollouts = "
        f"{args.generation_batch_size}; micro-batches of {args.per_device_train_batch_size} per process, "
        f"{args.gradient_accumulation_steps} per update",
    )
    with found.collecting():
        check_whole_groups(args, processes)
    if engine == "fsdp1" and (args.method_spec.needs_teachers or args.uses_divergence_loss):
        found.problems.append(NO_FSDP1)
    if args.use_vllm:
        found.say("not checked", "vLLM")
    data = _check_data(script_args, args, found)
    prompt = _prompt_length(data, script_args, args, str(model_args.model_name_or_path), found)
    with found.collecting():
        found.plan = _plan((script_args, args, model_args), prompt, layout, found)
    return found


def _layout(line: CommandLine, found: DryRun) -> tuple[int, str, str]:
    """Number of processes, what they share, and the engine, of the accelerate configuration."""
    launcher = accelerate_options(line, [])
    config = load_config_from_file(launcher.config_file)
    processes = int(launcher.num_processes or config.num_processes)
    machines = int(launcher.num_machines or config.num_machines or 1)
    if processes % machines:
        found.problems.append(f"num_processes={processes} is not a multiple of num_machines={machines}")
    stage, engine = 0, "ddp"
    if config.distributed_type == DistributedType.FSDP:
        stage, engine = 3, f"fsdp{int(config.fsdp_config.get('fsdp_version', 1))}"
    elif config.distributed_type == DistributedType.DEEPSPEED:
        stage, engine = int(config.deepspeed_config.get("zero_stage", 2)), "deepspeed"
        if stage == 3 and not config.deepspeed_config.get("zero3_save_16bit_model"):
            found.problems.append("ZeRO-3 saves no model without zero3_save_16bit_model: true in its configuration")
    return processes, SHARDS[stage], engine


def _check_data(script_args: TrainArguments, args: CEPOConfig, found: DryRun) -> Any:
    """Check dataset and reward functions as far as they are on this machine. Returns the dataset."""
    name, split = script_args.dataset_name, script_args.dataset_train_split
    data, rows, functions = None, None, []
    notes: list[str] = []
    with found.collecting():
        functions = load_reward_funcs(script_args.reward_funcs)
    with found.collecting():
        try:
            data = load_data(script_args, split, script_args.figures_problems, notes)
        except LoadingError as error:
            if name in EMBEDDED or looks_like_path(name) or Path(name).exists() or "has no split" in str(error):
                raise
            found.say("not checked", f"data: {name} is not on this machine")
    if isinstance(data, Dataset):
        rows = len(data)
        with found.collecting():
            check_dataset(data, needs_solution=need_solutions(functions), extractor=args.answer_extractor)
            validate_data(args, data, functions, environment_prompts=False)
    elif data is not None:
        found.say("not checked", "the rows of a stream")
    found.say("data", f"{name}, {split}: {'unknown number of' if rows is None else f'{rows:,}'} rows")
    for note in notes:
        found.say("", note)
    found.say("rewards", ", ".join(script_args.reward_funcs))
    length = f"{args.max_steps} optimizer steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    if args.max_steps <= 0 and rows is not None:
        # A generation batch serves for steps_per_generation micro-batches, num_iterations times.
        batches = rows // (args.generation_batch_size // args.num_generations)
        updates = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
        length = f"{int(batches * updates * args.num_train_epochs)} optimizer steps, {length}"
    found.say("length", length)
    return data


def _prompt_length(data: Any, script_args: TrainArguments, args: CEPOConfig, model: str, found: DryRun) -> int:
    """Length of the longest prompt, from the first ones if data and tokenizer are on this machine."""
    processor, limit = None, script_args.max_prompt_length
    longest, source = limit or _ASSUMED_PROMPT, "max_prompt_length" if limit else "assumed"
    try:
        processor = load_processor(model)
    except LoadingError as error:
        if "chat template" in str(error):
            found.problems.append(str(error))
        else:
            found.say("not checked", "tokenizer and chat template: not on this machine")
    if processor is not None and isinstance(data, Dataset) and len(data):
        with found.collecting():
            check_special_tokens(data["prompt"], processor)
        with found.collecting():
            check_image_sizes(data, processor)
            count = prompt_length(processor, args.chat_template_kwargs or {})
            lengths = [count(row) for row in data.select(range(min(_ROWS, len(data))))]
            kept = [length for length in lengths if length <= (limit or length)]
            if not kept:
                raise ValueError(f"max_prompt_length={limit}: the first {len(lengths)} prompts are longer")
            longest, source = max(kept), f"longest of the first {len(lengths)}"
    completion = args.max_completion_length
    tokens = f"{args.generation_batch_size * (longest + completion):,} a step"
    found.say("tokens", f"prompts of {longest} ({source}), completions of at most {completion}; {tokens}")
    return longest


def _plan(
    options: tuple[TrainArguments, CEPOConfig, ModelConfig], prompt: int, layout: tuple[int, str, str], found: DryRun
) -> Plan:
    """The estimate; its summary goes to the lines."""
    script_args, args, model_args = options
    config, source = find_config(str(model_args.model_name_or_path))
    dtype = getattr(torch, model_args.dtype) if model_args.dtype not in (None, "auto") else torch.float32
    model, teacher = Sizes.of(config, dtype, get_peft_config(model_args), freeze_tower=args.freeze_vision_tower), None
    if args.teacher_model_name_or_path is not None:
        teacher = Sizes.of(find_config(policy_of(args.teacher_model_name_or_path))[0], dtype)
    plan = Plan(
        model,
        args,
        prompt,
        max(0, prompt - _ASSUMED_TEXT) if model.tower else 0,
        args.max_completion_length,
        *layout,
        device=(script_args.device_memory or 0.0) * GIB,
        teacher=teacher,
        eval_batch=script_args.eval_batch_size if script_args.eval_problems else 0,
    )
    counts = {"": model.parameters, " trained": model.trained, " vision": model.tower.parameters if model.tower else 0}
    sizes = ", ".join(f"{count / 1e6:,.1f} M{name} parameters" for name, count in counts.items() if count)
    precision = f"{str(dtype).removeprefix('torch.')}{', bf16 autocast' if args.bf16 else ''}"
    found.lines.insert(0, ("model", f"{model_args.model_name_or_path} ({source}): {sizes}; {precision}"))
    if model_args.load_in_4bit or model_args.load_in_8bit:
        found.say("not checked", "quantization: the estimate counts unquantized weights")
    flops, most = plan.flops(), peak(plan.memory())
    shares = ", ".join(f"{part} {flops[part] / flops['TRL']:.2f}" for part in ("update", "teachers"))
    found.say("FLOPs", f"per step and process, in units of the update of TRL's GRPO ({flops['TRL']:.3g}): {shares}")
    found.say("fits", f"per_device_train_batch_size {batches_that_fit(plan)} on {DEVICES} GiB, a tenth left free")
    if plan.device and most > plan.device:
        found.problems.append(
            f"an estimated {most / GIB:,.1f} GiB do not fit a device of {script_args.device_memory:g} GiB; lower "
            "per_device_train_batch_size, set gradient_checkpointing, or shard"
        )
    return plan


def batches_that_fit(plan: Plan) -> str:
    """The largest `per_device_train_batch_size` on each of `DEVICES`; 0: not even one rollout."""
    return " / ".join(str(plan.largest_batch(float(size) * GIB)) for size in DEVICES.split(" / "))


def _table(plan: Plan) -> Table:
    """Memory by part and phase."""
    parts, device = plan.memory(), f" of {plan.device / GIB:g}" if plan.device else ""
    table = plain_table(f"estimated memory per process, GiB{device}; never compared with a GPU", gap=2)
    for name in ("part", *PHASES):
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=name != "part")
    for name, size, phases in sorted(parts, key=lambda part: -part[1]):
        table.add_row(name, *(f"{size / GIB:,.2f}" if phase in phases else "" for phase in PHASES))
    table.add_section()
    table.add_row("total", *(f"{at(parts, phase) / GIB:,.2f}" for phase in PHASES))
    return table
