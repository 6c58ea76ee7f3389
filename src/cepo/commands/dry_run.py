"""`cepo train --dry_run`: check options and data, and estimate memory, without weights, GPU or network."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from datasets import Dataset, IterableDataset
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table
from trl import ModelConfig, get_peft_config

from ..data.checks import check_dataset, check_image_sizes, check_method, check_size, check_verifier
from ..data.embedded import EMBEDDED, policy_of
from ..data.errors import LoadingError
from ..data.lengths import prompt_length
from ..data.loading import looks_like_path
from ..data.models import load_processor
from ..data.rewards import load_reward_funcs, need_solutions
from ..data.sampling import check_special_tokens
from ..inspection.tables import plain_table
from ..planning.memory import PHASES, SHARDS, Layout, Lengths, Memory, memory_of
from ..planning.models import Skeleton, find_config
from ..trainer.arguments import CommandLine, TrainArguments, load_data, parse
from ..trainer.cepo_config import CEPOConfig
from ..trainer.validation import NO_FSDP1, check_whole_groups
from .launch import accelerate_options

_GIB = 2**30
# Tokens of prompts that are not on this machine, and of the text in prompts with images.
_ASSUMED_PROMPT, _ASSUMED_TEXT = 512, 128
_ROWS = 100  # prompts that are tokenized


@dataclass
class Findings:
    """The result of the checks: a description of the run with skipped checks, and problems."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn an error into a problem."""
        try:
            yield
        except (ValueError, TypeError, OSError, ImportError) as error:
            problem = str(error).strip() or type(error).__name__
            if problem not in self.problems:  # two checks may find the same row
                self.problems.append(problem)


def prepare_dry_run(line: CommandLine) -> Callable[[Console], int]:
    """Check the run and return the job that prints the findings; its exit status is 2 if there is a problem."""
    # The libraries read HF_HUB_OFFLINE when they are imported, before any option is parsed.
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    findings = Findings()
    layout = Layout(int(os.environ.get("WORLD_SIZE", "1")))
    if line.more_flags or line.more_config:
        with findings.collecting():
            layout = _layout(line, findings)
    # A machine without GPU checks the options of a run on GPUs, whose default is bf16.
    on_gpu = line.options.bf16 is None and line.options.use_cpu is None and line.options.dataset_name not in EMBEDDED
    fallback = {} if torch.accelerator.is_available() or line.options.use_cpu is not None else {"use_cpu": True}
    known = replace(line, more_flags=[], more_config=[])
    script_args, args, model_args = parse(known, processes=layout.processes, fallback=fallback)
    args.bf16 = args.bf16 or on_gpu
    findings.lines += [
        ("processes", f"{layout.processes} ({layout.engine}), sharded: {layout.shards}"),
        ("method", f"{args.method}, seed {args.seed}"),
        (
            "step",
            f"{args.generation_batch_size // args.num_generations} prompts x {args.num_generations} rollouts = "
            f"{args.generation_batch_size}; micro-batches of {args.per_device_train_batch_size} per process, "
            f"{args.gradient_accumulation_steps} per update",
        ),
    ]
    with findings.collecting():
        check_whole_groups(args, layout.processes)
    if layout.engine == "fsdp1" and (args.method_spec.needs_teachers or args.uses_divergence_loss):
        findings.problems.append(NO_FSDP1)
    if args.use_vllm:
        findings.lines.append(("not checked", "vLLM"))
    data = _check_data(script_args, args, findings)
    lengths = _lengths(data, script_args, args, model_args, findings)
    memory = None
    with findings.collecting():
        memory = _memory(script_args, args, model_args, layout, lengths, findings)

    def job(console: Console) -> int:
        for name, text in findings.lines:
            console.print(f"{name:<13}{text}")
        if memory is not None:
            console.print(_table(memory, script_args.device_memory), soft_wrap=False)
        for text in findings.problems:
            console.print(f"problem: {text}")
        if not findings.problems:
            console.print("no problem found")
        return 2 if findings.problems else 0

    return job


def _layout(line: CommandLine, findings: Findings) -> Layout:
    """Processes and sharding of the accelerate configuration."""
    launcher = accelerate_options(line, [])
    config = load_config_from_file(launcher.config_file)
    processes = int(launcher.num_processes or config.num_processes)
    machines = int(launcher.num_machines or config.num_machines or 1)
    if processes % machines:
        findings.problems.append(f"num_processes={processes} is not a multiple of num_machines={machines}")
    if config.distributed_type == DistributedType.FSDP:
        return Layout(processes, "weights", f"fsdp{int(config.fsdp_config.get('fsdp_version', 1))}")
    if config.distributed_type != DistributedType.DEEPSPEED:
        return Layout(processes)
    stage = int(config.deepspeed_config.get("zero_stage", 2))
    if stage == 3 and not config.deepspeed_config.get("zero3_save_16bit_model"):
        findings.problems.append("ZeRO-3 saves no model without zero3_save_16bit_model: true in its configuration")
    return Layout(processes, SHARDS[stage], "deepspeed")


def _check_data(script_args: TrainArguments, args: CEPOConfig, findings: Findings) -> Any:
    """Check dataset and verifier as far as they are on this machine. Returns the dataset."""
    name, split = script_args.dataset_name, script_args.dataset_train_split
    verifier = script_args.reward_funcs[0]
    functions: list[Any] = []
    with findings.collecting():
        functions = load_reward_funcs(script_args.reward_funcs)
    data, rows = None, None
    notes: list[str] = []
    try:
        data = load_data(script_args, split, script_args.figures_problems, notes)
    except LoadingError as error:
        if name in EMBEDDED or looks_like_path(name) or Path(name).exists() or "has no split" in str(error):
            findings.problems.append(str(error))
        else:
            findings.lines.append(("not checked", f"data: {name} is not on this machine"))
    except ValueError as error:
        findings.problems.append(str(error))
    if isinstance(data, Dataset):
        rows = len(data)
        needs_solution = args.method_spec.needs_solution or need_solutions(functions)
        with findings.collecting():
            if functions:
                line, _ = check_verifier(functions[0], data, args.answer_extractor)
                verifier = line or f"{verifier}; not called before training"
        with findings.collecting():
            check_dataset(data, needs_solution=needs_solution, extractor=args.answer_extractor)
        with findings.collecting():
            check_size(data, args.generation_batch_size, args.num_generations)
        with findings.collecting():
            check_method(data, args.method_options)
    elif isinstance(data, IterableDataset):
        findings.lines.append(("not checked", "the rows of a stream"))
    findings.lines.append(("data", f"{name}, {split}: {'unknown number of' if rows is None else f'{rows:,}'} rows"))
    findings.lines += [("", note) for note in notes]
    findings.lines += [("verifier", verifier), ("length", _steps(args, rows))]
    return data


def _steps(args: CEPOConfig, rows: int | None) -> str:
    if args.max_steps > 0:
        return f"{args.max_steps} optimizer steps"
    if rows is None:
        return f"{args.num_train_epochs:g} epochs"
    # A generation batch serves for steps_per_generation micro-batches, num_iterations times.
    batches = rows // (args.generation_batch_size // args.num_generations)
    updates = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
    return f"{int(batches * updates * args.num_train_epochs)} optimizer steps, {args.num_train_epochs:g} epochs"


def _lengths(
    data: Any, script_args: TrainArguments, args: CEPOConfig, model_args: ModelConfig, findings: Findings
) -> Lengths:
    """Lengths of rollouts, from the first prompts if data and tokenizer are on this machine."""
    processor, limit = None, script_args.max_prompt_length
    longest, source = limit or _ASSUMED_PROMPT, "max_prompt_length" if limit else "assumed"
    try:
        processor = load_processor(str(model_args.model_name_or_path))
    except LoadingError as error:
        if "chat template" in str(error):
            findings.problems.append(str(error))
        else:
            findings.lines.append(("not checked", "tokenizer and chat template: not on this machine"))
    if processor is not None and isinstance(data, Dataset) and len(data):
        with findings.collecting():
            check_special_tokens(data["prompt"], processor)
        with findings.collecting():
            check_image_sizes(data, processor)
            count = prompt_length(processor, args.chat_template_kwargs or {})
            lengths = [count(row) for row in data.select(range(min(_ROWS, len(data))))]
            kept = [length for length in lengths if length <= (limit or length)]
            if not kept:
                raise ValueError(f"max_prompt_length={limit}: the first {len(lengths)} prompts are longer")
            longest, source = max(kept), f"longest of the first {len(lengths)}"
    text = f"prompts of {longest} ({source}), completions of at most {args.max_completion_length}"
    findings.lines.append(("tokens", text))
    return Lengths(longest, max(0, longest - _ASSUMED_TEXT), args.max_completion_length)


def _memory(
    script_args: TrainArguments,
    args: CEPOConfig,
    model_args: ModelConfig,
    layout: Layout,
    lengths: Lengths,
    findings: Findings,
) -> Memory:
    config, source = find_config(str(model_args.model_name_or_path))
    dtype = getattr(torch, model_args.dtype) if model_args.dtype not in (None, "auto") else torch.float32
    mixed = args.bf16 and dtype == torch.float32
    skeleton = Skeleton.of(config, dtype, get_peft_config(model_args), freeze_tower=args.freeze_vision_tower)
    counts = [f"{skeleton.count() / 1e6:,.1f} M parameters", f"{skeleton.count(trained=True) / 1e6:,.1f} M trained"]
    if skeleton.tower is not None:
        counts.append(f"{skeleton.count(module=skeleton.tower) / 1e6:,.1f} M vision tower")
    precision = f"{str(dtype).removeprefix('torch.')}{', bf16 autocast' if mixed else ''}"
    text = f"{model_args.model_name_or_path} ({source}): {', '.join(counts)}; {precision}"
    findings.lines.insert(0, ("model", text))
    teacher = None
    if args.teacher_model_name_or_path is not None:
        teacher = Skeleton.of(find_config(policy_of(args.teacher_model_name_or_path))[0], dtype)
    if skeleton.tower is None:
        lengths = replace(lengths, image=0)
    device = script_args.device_memory or 0.0
    eval_batch = script_args.eval_batch_size if script_args.eval_problems else 0
    memory = memory_of(
        skeleton,
        args,
        layout,
        lengths,
        mixed=mixed,
        device=device * _GIB,
        teacher=teacher,
        eval_batch=eval_batch,
    )
    if model_args.load_in_4bit or model_args.load_in_8bit:
        findings.lines.append(("not checked", "quantization: the estimate counts unquantized weights"))
    if device and memory.peak > device * _GIB:
        findings.problems.append(
            f"an estimated {memory.peak / _GIB:,.1f} GiB do not fit a device of {device:g} GiB; lower "
            "per_device_train_batch_size, set gradient_checkpointing, or shard"
        )
    return memory


def _table(memory: Memory, device: float | None) -> Table:
    table = plain_table(f"estimated memory per process, GiB{f' of {device:g}' if device else ''}", gap=2)
    table.add_column("part")
    for phase in PHASES:
        table.add_column(phase, justify="right", no_wrap=True)
    for part in sorted(memory.parts, key=lambda part: -part.bytes):
        table.add_row(part.name, *(f"{part.bytes / _GIB:,.2f}" if phase in part.phases else "" for phase in PHASES))
    table.add_section()
    table.add_row("total", *(f"{memory.at(phase) / _GIB:,.2f}" for phase in PHASES))
    return table
