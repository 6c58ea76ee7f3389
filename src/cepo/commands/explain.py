"""`cepo explain`: token advantages of rollouts as a page or in the terminal, and statistics of evidence."""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import IterableDataset
from rich.console import Console

from ..data.checks import check_dataset
from ..data.embedded import holds_model
from ..data.errors import LoadingError
from ..data.files import write_whole
from ..data.images import broken_images_named
from ..data.loading import load_split
from ..data.models import load_policy, load_teacher_model
from ..data.rewards import load_reward_funcs
from ..data.sampling import RewardFunc, Sampling, sampled_groups, seeded
from ..data.saved import SavedError, load_saved, restore
from ..inspection.evidence_statistics import evidence_statistics
from ..inspection.hint_following import hint_following
from ..inspection.inspect import all_variants, find_variant, inspect_with
from ..inspection.page import credit_page
from ..inspection.tables import counted
from ..inspection.terminal import print_credit, statistics_table
from ..inspection.view_model import InspectedGroup, Variant, explain_options
from ..methods.registry import METHODS, find_method
from ..references.groups import Group
from ..tasks.figures import NAME as FIGURES
from ..tasks.figures import filler_tokens, policy_path, problem_of
from ..trainer.arguments import method_flag
from ..trainer.cepo_config import CEPOConfig
from . import quiet_libraries
from .options import (
    add_credit,
    add_dataset,
    add_model,
    add_sampling,
    add_verifier,
    check_group_size,
    credit_options,
    dataset_options,
    load_rows,
    make_command_parser,
    not_negative,
    positive,
    verifier_of,
)
from .train import RUN_FILE

# The method options of this command.
CREDIT = (
    *("evidence_coefficient", "evidence_clip", "max_negatives", "hint_template", "teacher_model_name_or_path"),
    *("positive_content", "negative_content", "answer_extractor"),
)
_STATISTICS_PROMPTS, _RUN_PROMPTS = 20, 2  # default --num_prompts
_CHUNK = 20  # groups scored at a time
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def make_parser(method: str | None = None) -> argparse.ArgumentParser:
    parser = make_command_parser(
        "explain",
        "Compare the token advantages of methods on a sampled group, or on the rollouts of a run. With --statistics: "
        "size and location of the evidence, and hint following.",
    )
    add_model(parser)
    data = add_dataset(parser)
    data.add_argument("--index", type=not_negative, default=0, help="first row of the dataset")
    data.add_argument(
        "--num_prompts",
        type=positive,
        default=None,
        help=f"most groups (default: 1; {_STATISTICS_PROMPTS} with --statistics; {_RUN_PROMPTS} with --from)",
    )
    verifier = add_sampling(parser)
    verifier.add_argument("--num_generations", type=positive, default=8, help="rollouts per group")
    add_verifier(verifier)
    run = parser.add_argument_group("rollouts of a run")
    run.add_argument("--from", dest="run", default=None, metavar="DIR", help="output_dir of a run with log_completions")
    run.add_argument("--step", type=int, default=None, help="optimizer step (default: the last saved step)")
    add_credit(parser, CREDIT, method)
    add = parser.add_argument_group("statistics").add_argument
    add("--statistics", action="store_true", help="print statistics of many groups under the method of --show")
    add("--output", type=Path, default=None, metavar="FILE", help="write the statistics as JSON")
    add = parser.add_argument_group("output").add_argument
    add("--method", default=None, help="method whose own options are set, or a custom one, package.module:name")
    add("--show", default=None, help="method to show first: grpo, rlsd, 'cepo own' (default: --method, else cepo)")
    add("--output_dir", type=Path, default=Path(), help="folder of explain.html")
    add("--terminal", action="store_true", help="print to the terminal instead of writing a page")
    return parser


@dataclass(frozen=True)
class _Job:
    """A model with dataset rows to sample rollouts for, or with `groups` that a run sampled.

    Attributes:
        about: Properties to list on the page and in the statistics.
    """

    model: Any
    processing_class: Any
    about: dict[str, str]
    rows: list[dict[str, Any]]
    groups: list[Group] | None = None
    other_model: Any = None

    @property
    def columns(self) -> list[str]:
        rows = self.rows or [group.row for group in self.groups or []]
        return list(rows[0]) if rows else []


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Check the options, and load model and data.

    Returns:
        A function that runs the command and returns the exit status.

    Raises:
        ValueError, OSError: For errors in options, model or data.
    """
    options = make_parser(method_flag(arguments)).parse_args(arguments)
    if options.statistics and options.terminal:
        raise ValueError("--statistics prints a table; leave out --terminal")
    if options.output is not None and not options.statistics:
        raise ValueError("--output is for --statistics; --output_dir is the folder of the page")
    if options.statistics:
        check_group_size(options.num_generations)
    if options.num_prompts is None:
        options.num_prompts = _RUN_PROMPTS if options.run else _STATISTICS_PROMPTS if options.statistics else 1
    quiet_libraries()
    given = credit_options(options, CREDIT)
    own = None if options.method is None else find_method(options.method).name
    if options.show is None:
        options.show = own or CEPOConfig.method
    (reward_func,) = load_reward_funcs(options.reward_funcs or verifier_of(options.dataset_name))
    if options.show not in (own, *METHODS):  # methods that depend on the dataset are checked once it is loaded
        find_variant(options.show, all_variants(given))
    job = _of_run(options) if options.run else _of_dataset(options)
    if options.teacher_model_name_or_path is not None:
        other = load_teacher_model(
            options.teacher_model_name_or_path,
            job.processing_class,
            job.model.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        job = replace(job, other_model=other.to(job.model.device))
    variants = all_variants(given, columns=job.columns)
    selected = find_variant(options.show, variants)
    if options.statistics:
        if not selected.method.needs_teachers:
            raise ValueError(f"--statistics: {selected.name} has no teachers and no evidence; choose another --show")
        return lambda console: _statistics(options, job, selected, reward_func, console)
    return lambda console: _explain(options, job, variants, selected, reward_func, console)


def _of_dataset(options: argparse.Namespace) -> _Job:
    first, last = options.index, options.index + options.num_prompts
    dataset, split = load_rows(options, last), f"the split {options.dataset_split!r}"
    if first >= len(dataset):
        raise ValueError(f"--index {first}: {split} has {len(dataset)} rows")
    indices = range(first, min(last, len(dataset)))
    named = f"row {first}" if len(indices) == 1 else f"rows {first} to {indices[-1]}"
    chosen = dataset.select(indices)
    check_dataset(chosen, needs_solution=True, name=f"{named} of {split}")
    with broken_images_named(dataset, split, list(indices)):
        rows = list(chosen)
    model, processing_class = load_policy(
        options.model_name_or_path or policy_path(), trust_remote_code=options.trust_remote_code
    )
    about = {
        "model": options.model_name_or_path or "the shipped policy",
        "data": f"{options.dataset_name}, {options.dataset_split}, {named}",
    }
    return _Job(model, processing_class, about, rows)


def _of_run(options: argparse.Namespace) -> _Job:
    """The rollouts that a run saved, and its model."""
    run = Path(options.run).expanduser()
    if not run.is_dir():
        raise SavedError(f"--from: no such folder: {options.run}")
    saved = load_saved(str(run), options.step)
    name = options.model_name_or_path or _model_of(run, saved.step)
    data = {"dataset_name": options.dataset_name, "dataset_config": options.dataset_config}
    data |= {"dataset_split": options.dataset_split, "figures_problems": 2000}
    if (run / RUN_FILE).is_file():
        data |= json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    try:
        dataset = load_split(
            data["dataset_name"],
            data["dataset_split"],
            config=data["dataset_config"],
            size=data["figures_problems"],
            options=dataset_options(data),
        )
    except LoadingError as error:
        raise SavedError(
            f"--from: {error}. This is the dataset of the run; relative paths resolve from the current directory"
        ) from error
    if isinstance(dataset, IterableDataset):
        raise SavedError(f"--from: {data['dataset_name']} is a stream, so the rows of the rollouts cannot be looked up")
    model, processing_class = load_policy(name, trust_remote_code=options.trust_remote_code)
    # Groups with an advantage first.
    order = sorted(saved.groups, key=lambda rows: not any(row["advantage"] for row in rows))
    groups = restore(order[: options.num_prompts], dataset, processing_class)
    about = {
        "rollouts": f"sampled at step {saved.step} of the run {options.run}",
        "scored by": f"{name}, with its current weights, not those of that step",
        "data": f"{data['dataset_name']}, {data['dataset_split']}",
    }
    return _Job(model, processing_class, about, [], groups)


def _model_of(run: Path, step: int) -> str:
    """The checkpoint of the step if there is one, else the final model of the run, else its last checkpoint."""
    checkpoints = {int(m[1]): path for path in run.iterdir() if (m := _CHECKPOINT.fullmatch(path.name))}
    if step in checkpoints:
        return str(checkpoints[step])
    if holds_model(run):
        return str(run)
    if checkpoints:
        return str(checkpoints[max(checkpoints)])
    raise SavedError(f"--from: {run} has no model; name one with --model_name_or_path")


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(options.max_completion_length, options.temperature, batch_size=options.batch_size)


def _groups(options: argparse.Namespace, job: _Job, reward_func: RewardFunc, console: Console) -> list[Group]:
    """The run's groups, or one sampled for each row."""
    if job.groups is not None:
        return job.groups
    with console.status("sampling"), seeded(options.seed):
        return sampled_groups(
            job.model,
            job.processing_class,
            job.rows,
            options.num_generations,
            _sampling(options),
            reward_func,
            threshold=options.correctness_threshold,
            extractor=options.answer_extractor or "auto",
        )


def _inspect(
    options: argparse.Namespace,
    job: _Job,
    groups: list[Group],
    variants: Sequence[Variant],
    console: Console,
    temperature: float = 1.0,
) -> list[InspectedGroup]:
    has_labels = options.dataset_name == FIGURES and bool(job.rows)
    inspected: list[InspectedGroup] = []
    with console.status("scoring the rollouts"):
        for start in range(0, len(groups), _CHUNK):
            inspected += inspect_with(
                job.model,
                job.processing_class,
                groups[start : start + _CHUNK],
                variants,
                max_tokens=options.teacher_batch_tokens,
                seed=str(options.seed),
                other_model=job.other_model,
                temperature=temperature,
                filler_of=(lambda group, tokens: filler_tokens(problem_of(group.row), tokens)) if has_labels else None,
            )
    return inspected


def _statistics(
    options: argparse.Namespace, job: _Job, selected: Variant, reward_func: RewardFunc, console: Console
) -> int:
    sampled = _groups(options, job, reward_func, console)
    groups = [group for group in sampled if any(rollout.advantage for rollout in group.rollouts)]
    correct = fmean(rollout.correct is True for group in sampled for rollout in group.rollouts)
    console.print(
        f"{counted(len(sampled), 'group')}, {correct:.1%} of the rollouts correct, {len(groups)} with correct and "
        "incorrect rollouts",
    )
    if not groups:
        console.print("No statistics: no group has both correct and incorrect rollouts; raise --num_prompts.")
        return 1
    inspected = _inspect(options, job, groups, [selected], console, options.temperature or 1.0)
    evidence = evidence_statistics(job.processing_class, inspected, selected, seed=options.seed)
    with console.status("hint following"):
        followed = hint_following(job.model, job.processing_class, inspected, selected, _sampling(options))
    console.print(statistics_table(selected.name, evidence, followed))
    if options.output is not None:
        result = {
            **job.about,
            "method": selected.name,
            "options": explain_options(selected),
            "groups": len(sampled),
            "groups_with_advantage": len(groups),
            "correct": correct,
            "seed": options.seed,
            "evidence": evidence,
            "hint_following": followed,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.output, json.dumps(result, indent=1) + "\n")
        console.print(f"written to {options.output}")
    return 0


def _explain(
    options: argparse.Namespace,
    job: _Job,
    variants: Sequence[Variant],
    selected: Variant,
    reward_func: RewardFunc,
    console: Console,
) -> int:
    groups = _groups(options, job, reward_func, console)
    inspected = _inspect(options, job, groups, variants, console)
    if options.terminal:
        print_credit(console, inspected, selected)
        return 0
    title = "Token advantages by method"
    page = credit_page(inspected, title=title, about=job.about, variants=variants, selected=selected)
    output = options.output_dir / "explain.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, page)
    verdicts = [rollout.correct for group in groups for rollout in group.rollouts]
    console.print(f"{verdicts.count(True)} of {len(verdicts)} rollouts are correct")
    if not any(credit.advantages.any() for group in inspected for credit in group.credit(selected)):
        other = "--step" if options.run else "--index or --seed"
        console.print(f"No token has an advantage under {selected.name}; try another {other}.")
    console.print(f"written to {output}")
    return 0
