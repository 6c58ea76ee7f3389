"""`cepo train --dry_run`: what a run would do and take, and what is wrong with it, without weights, GPU or network."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import DistributedType
from datasets import Dataset, IterableDataset
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table
from trl import ModelConfig, get_peft_config

from ..data.checks import check_dataset, check_image_sizes, check_method, check_size, check_verifier
from ..data.embedded import EMBEDDED, policy_of
from ..data.formats import FORMATS
from ..data.lengths import prompt_length
from ..data.loading import LoadingError, load_processor, load_reward_funcs, looks_like_path, need_solutions
from ..data.sampling import check_special_tokens
from ..inspection.tables import plain_table
from ..planning.memory import PHASES, Layout, Lengths, Memory, memory_of
from ..planning.models import Skeleton, find_config
from ..trainer.arguments import CommandLine, TrainArguments, load_data, parse
from ..trainer.cepo_config import CEPOConfig
from ..trainer.sharding import NO_FSDP1
from ..trainer.validation import check_whole_groups
from .launch import accelerate_options

_GIB = 2**30
# Of prompts that cannot be looked at.
_ASSUMED_PROMPT, _ASSUMED_TEXT = 512, 128
_ROWS_READ = 100


@dataclass
class Findings:
    """What was found: lines that say what a run is, what is wrong with it, and what could not be looked at."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """What is refused in here is one of the problems."""
        try:
            yield
        except (ValueError, TypeError, OSError, ImportError) as error:
            problem = str(error).strip() or type(error).__name__
            if problem not in self.problems:
                self.problems.append(problem)


def prepare_dry_run(line: CommandLine) -> Callable[[Console], int]:
    """Find out everything; the returned function shows it, and returns exit status 2 if there is a problem.

    Raises:
        ValueError: For options that cannot be read at all.
    """
    # It asks no server. Both are read from the environment when these libraries are imported, before any option is.
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    findings = Findings()
    layout = Layout(int(os.environ.get("WORLD_SIZE", "1")))
    if line.more_flags or line.more_config:
        with findings.trying():
            layout = _layout(line, findings)
    else:
        findings.lines.append(("processes", f"{layout.processes}"))
    # Options for a GPU are read where there is none.
    fallback = {} if torch.accelerator.is_available() or line.options.use_cpu is not None else {"use_cpu": True}
    known = replace(line, more_flags=[], more_config=[])
    script_args, args, model_args = parse(known, processes=layout.processes, fallback=fallback)
    given = line.options.bf16 is not None or line.options.use_cpu is not None
    assumed = script_args.dataset_name not in EMBEDDED and not given
    if assumed:
        args.bf16 = True  # as it is with a GPU
    _describe(args, model_args, layout, findings)
    lengths = _look_at_data(script_args, args, model_args, findings)
    memory = None
    with findings.trying():
        memory = _memory(script_args, args, model_args, layout, lengths, findings)
    options = _given(script_args, args, model_args)
    if assumed:
        options = options.replace("bf16: true", "bf16: true (as on a GPU)")
    findings.lines.append(("options", options))

    def show(console: Console) -> int:
        def say(text: str) -> None:
            console.print(text, highlight=False, markup=False)

        for name, text in findings.lines:
            say(f"{name:<13}{text}")
        if memory is not None:
            console.print(_table(memory, layout, (script_args.device_memory or 0) * _GIB), soft_wrap=False)
            for note in memory.notes:
                say(f"  {note}")
        for text in findings.unseen:
            say(f"not looked at: {text}")
        for text in findings.problems:
            say(f"problem: {text}")
        if not findings.problems:
            say("no problem found")
        return 2 if findings.problems else 0

    return show


def _layout(line: CommandLine, findings: Findings) -> Layout:
    """Processes and sharding of the configuration that accelerate would start."""
    found, config = accelerate_options(line, [])
    processes = int(found.num_processes or config.num_processes)
    kind, layout = config.distributed_type, Layout(processes)
    if kind == DistributedType.FSDP:
        layout = Layout(processes, "weights", f"fsdp{int(config.fsdp_config.get('fsdp_version', 1))}")
    elif kind == DistributedType.DEEPSPEED:
        stage = int(config.deepspeed_config.get("zero_stage", 2))
        shards: Any = ("none", "optimizer", "gradients", "weights")[stage]
        layout = Layout(processes, shards, "deepspeed")
        if stage == 3 and not config.deepspeed_config.get("zero3_save_16bit_model"):
            findings.problems.append("ZeRO-3 leaves no model without zero3_save_16bit_model: true in its configuration")
    machines = int(found.num_machines or config.num_machines or 1)
    shared = {"none": "nothing", "optimizer": "the optimiser", "gradients": "gradients and optimiser", "weights": "all"}
    where = f", on {machines} machines" if machines > 1 else ""
    name = Path(found.config_file).stem
    findings.lines.append(("processes", f"{processes} ({name}){where}; sharded: {shared[layout.shards]}"))
    if processes % machines:
        findings.problems.append(f"num_processes={processes} is not a multiple of num_machines={machines}")
    return layout


def _describe(args: CEPOConfig, model_args: ModelConfig, layout: Layout, findings: Findings) -> None:
    group, rollouts = args.num_generations, args.generation_batch_size
    prompts = rollouts // group
    each = args.per_device_train_batch_size
    findings.lines += [
        ("method", f"{args.method}, seed {args.seed}"),
        (
            "a step",
            f"{prompts} prompts x {group} rollouts = {rollouts}; updated {each} at a time on each process, "
            f"{args.gradient_accumulation_steps} times",
        ),
    ]
    with findings.trying():
        check_whole_groups(args, layout.processes)
    if layout.engine == "fsdp1" and (args.method_spec.needs_teachers or args.uses_divergence_loss):
        findings.problems.append(NO_FSDP1)
    if args.use_vllm:
        findings.unseen.append("vLLM, which is not asked here")
    with findings.trying():
        get_peft_config(model_args)


def _steps(args: CEPOConfig, rows: int | None) -> str:
    if args.max_steps > 0:
        return f"{args.max_steps} optimiser steps"
    if rows is None:
        return f"{args.num_train_epochs:g} epochs of a data set whose size is not known"
    # Every generation batch serves for steps_per_generation micro-batches, num_iterations times.
    batches = rows // (args.generation_batch_size // args.num_generations)
    each = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
    return f"{int(batches * each * args.num_train_epochs)} optimiser steps, {args.num_train_epochs:g} epochs"


def _look_at_data(
    script_args: TrainArguments, args: CEPOConfig, model_args: ModelConfig, findings: Findings
) -> Lengths:
    """Data and prompts, as far as they are here.

    Returns:
        The lengths of rollouts, assumed where nothing else is known.
    """
    name, split = script_args.dataset_name, script_args.dataset_train_split
    data, rows = None, None
    notes: list[str] = []
    functions: list[Any] = []
    with findings.trying():
        functions = load_reward_funcs(script_args.reward_funcs)
    verifier = script_args.reward_funcs[0]
    try:
        data = load_data(script_args, split, script_args.figures_problems, notes)
    except LoadingError as error:
        if name in EMBEDDED or looks_like_path(name) or Path(name).exists() or "has no split" in str(error):
            findings.problems.append(str(error))
        else:
            findings.unseen.append(f"the data: {name} is not on this machine, nor how many solutions {verifier} reads")
            rows = FORMATS[script_args.format_of(name)].rows.get(split)
    except ValueError as error:
        findings.problems.append(str(error))
    if isinstance(data, Dataset):
        rows = len(data)
        needs_solution = args.method_spec.needs_solution or need_solutions(functions)
        with findings.trying():
            for function in functions[:1]:
                line, _ = check_verifier(function, data, args.answer_extractor)
                verifier = line or f"{verifier}; not called before training"
        with findings.trying():
            check_dataset(data, needs_solution=needs_solution, extractor=args.answer_extractor)
        with findings.trying():
            check_size(data, args.generation_batch_size, args.num_generations)
        with findings.trying():
            check_method(data, args.method_options)
    elif isinstance(data, IterableDataset):
        findings.unseen.append("the rows of a stream")
    findings.lines.append(("data", f"{name}, {split}: {f'{rows:,}' if rows else 'so many'} rows"))
    findings.lines += [("", note) for note in notes]
    findings.lines.append(("verifier", verifier))
    findings.lines.append(("length", _steps(args, rows)))
    return _lengths(data, script_args, args, model_args, findings)


def _lengths(
    data: Any, script_args: TrainArguments, args: CEPOConfig, model_args: ModelConfig, findings: Findings
) -> Lengths:
    longest, image, source = 0, 0, ""
    try:
        processor = load_processor(str(model_args.model_name_or_path))
    except LoadingError as error:
        if "chat template" in str(error):
            findings.problems.append(str(error))
        else:
            findings.unseen.append("tokenizer and chat template, which are not on this machine")
        processor = None
    if processor is not None and isinstance(data, Dataset) and len(data):
        with findings.trying():
            check_special_tokens(data["prompt"], processor)
        with findings.trying():
            check_image_sizes(data, processor)
            count = prompt_length(processor, args.chat_template_kwargs or {})
            some = data.select(range(min(_ROWS_READ, len(data))))
            lengths = [count(row) for row in some]
            kept = [length for length in lengths if length <= (script_args.max_prompt_length or length)]
            if not kept:
                raise ValueError(f"max_prompt_length={script_args.max_prompt_length}: all prompts looked at are longer")
            longest, source = max(kept), f"the longest of the first {len(some)}"
            row = next(row for row, length in zip(some, lengths, strict=True) if length == longest)
            image = _image_tokens(row, count)
    if not longest:
        limit = script_args.max_prompt_length
        longest, source = limit or _ASSUMED_PROMPT, "the limit" if limit else "assumed"
        image = max(0, longest - _ASSUMED_TEXT)
    text = f"prompts of {longest} tokens ({source}), completions of at most {args.max_completion_length}"
    findings.lines.append(("tokens", text))
    return Lengths(longest, image, args.max_completion_length)


def _image_tokens(row: dict[str, Any], count: Callable[[dict[str, Any]], int]) -> int:
    """Tokens of a row's images, as its processor counts."""
    if not row.get("images") and row.get("image") is None:
        return 0

    def text_of(content: Any) -> Any:
        return content if isinstance(content, str) else [part for part in content if part["type"] != "image"]

    plain = [{**turn, "content": text_of(turn["content"])} for turn in row["prompt"]]
    return count(row) - count({"prompt": plain})


def _memory(
    script_args: TrainArguments,
    args: CEPOConfig,
    model_args: ModelConfig,
    layout: Layout,
    lengths: Lengths,
    findings: Findings,
) -> Memory:
    device = (script_args.device_memory or 0) * _GIB
    config, source = find_config(str(model_args.model_name_or_path))
    dtype = getattr(torch, model_args.dtype) if model_args.dtype not in (None, "auto") else torch.float32
    skeleton = Skeleton.of(config, dtype, get_peft_config(model_args), freeze_vision_tower=args.freeze_vision_tower)
    trained, total = skeleton.count(trained=True), skeleton.count()
    tower = f", {skeleton.count(module=skeleton.tower) / 1e6:,.1f} M of these see" if skeleton.tower is not None else ""
    findings.lines.insert(
        0,
        (
            "model",
            f"{model_args.model_name_or_path}: {total / 1e6:,.1f} M parameters{tower}, {trained / 1e6:,.1f} M trained; "
            f"{str(dtype).removeprefix('torch.')}{', bf16 products' if args.bf16 and dtype == torch.float32 else ''} "
            f"(from {source})",
        ),
    )
    if skeleton.tower is None:
        lengths = Lengths(lengths.prompt, 0, lengths.completion)
    other = None
    if args.teacher_model_name_or_path is not None:
        other = Skeleton.of(find_config(policy_of(args.teacher_model_name_or_path))[0], dtype)
    memory = memory_of(
        skeleton,
        args,
        layout,
        lengths,
        mixed=args.bf16 and dtype == torch.float32,
        device=device,
        other=other,
        answers=script_args.eval_batch_size if script_args.eval_problems else 0,
    )
    if model_args.load_in_4bit or model_args.load_in_8bit:
        memory.notes.append("weights are counted as if they were not quantised")
    if device and memory.peak > device:
        findings.problems.append(
            f"an estimated {memory.peak / _GIB:,.1f} GiB do not fit a device of {device / _GIB:g} GiB; lower "
            "per_device_train_batch_size, switch gradient_checkpointing on, or shard"
        )
    return memory


def _table(memory: Memory, layout: Layout, device: float) -> Table:
    room = f" of {device / _GIB:g}" if device else ""
    each = f"each of {layout.processes} processes" if layout.processes > 1 else "the process"
    table = plain_table(f"estimated memory of {each}, GiB{room}", gap=2)
    table.add_column("part")
    for phase in PHASES:
        table.add_column(phase, justify="right", no_wrap=True)
    for part in sorted(memory.parts, key=lambda part: -part.bytes):
        cells = [f"{part.bytes / _GIB:,.2f}" if phase in part.phases else "" for phase in PHASES]
        table.add_row(part.name, *cells)
    table.add_section()
    table.add_row("all of it", *(f"{memory.at(phase) / _GIB:,.2f}" for phase in PHASES))
    return table


def _given(*parsed: Any) -> str:
    """Options that are not what they would be anyway, those of the method among them."""
    found = []
    for arguments in parsed:
        for one in fields(arguments):
            value, default = getattr(arguments, one.name), one.default
            value = value.value if isinstance(value, Enum) else value
            if one.init and value is not None and value not in (default, {}, []) and one.name not in _BY_THEMSELVES:
                text = value if isinstance(value, str) and value.split() == [value] else json.dumps(value)
                found.append(f"{one.name}: {text}")
    return "; ".join(sorted(found))


# What has its own line, or follows from others.
_BY_THEMSELVES = {
    *("use_cpu", "model_name_or_path", "dataset_name", "generation_batch_size", "dry_run", "device_memory"),
    *("logging_dir", "run_name", "seed", "method", "accelerator_config", "steps_per_generation"),
    *("disable_tqdm", "dataloader_pin_memory"),  # which follow from this machine
}
