"""`cepo explain`: which tokens get the credit, as a page or in the terminal, and statistics of evidence."""

import argparse
import json
import re
import webbrowser
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
from ..inspection.inspect import Inspected, Variant, all_variants, inspect_with
from ..inspection.page import credit_page
from ..inspection.tables import counted
from ..inspection.terminal import print_credit, statistics_table
from ..inspection.view_model import explain_options, show
from ..methods.registry import METHODS, find_method
from ..references.groups import Group
from ..references.negatives import DEFAULT_RULE
from ..tasks.figures import NAME as FIGURES
from ..tasks.figures import filler_tokens, policy_path, problem_of
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
    own_method,
    positive,
    verifier_of,
)
from .train import RUN_FILE

# The options of methods that this command takes.
CREDIT = (
    *("evidence_coefficient", "evidence_clip", "max_negatives", "hint_template", "teacher_model_name_or_path"),
    *("positive_content", "negative_content", "answer_extractor"),
)
_STATISTICS_PROMPTS, _RUN_PROMPTS = 20, 2  # groups where --num_prompts is not given
_CHUNK = 20  # groups scored at a time
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "explain",
        "Sample a group of rollouts, or take those of a run, and show which tokens get the credit. With --statistics: "
        "how much evidence there is, on which tokens, and whether the model follows its hints.",
    )
    add_model(parser)
    data = add_dataset(parser)
    data.add_argument("--index", type=int, default=0, help="row of the data set, the first of several")
    data.add_argument(
        "--num_prompts",
        type=positive,
        default=None,
        help=f"groups at most (none: 1; {_STATISTICS_PROMPTS} with --statistics; {_RUN_PROMPTS} of a run)",
    )
    verifier = add_sampling(parser)
    verifier.add_argument("--num_generations", type=positive, default=8, help="rollouts to sample")
    add_verifier(verifier)
    run = parser.add_argument_group("a run's own rollouts")
    run.add_argument("--from", dest="run", default=None, metavar="DIR", help="output_dir of a run with log_completions")
    run.add_argument("--step", type=int, default=None, help="the optimiser step (none: the last one saved)")
    add_credit(parser, *CREDIT)
    add = parser.add_argument_group("statistics").add_argument
    add("--statistics", action="store_true", help="print one table about many groups, for the method of --show")
    add("--output", type=Path, default=None, metavar="FILE", help="write the numbers of --statistics as JSON")
    add = parser.add_argument_group("output").add_argument
    add("--method", default=None, help="a method of your own to show beside ours: package.module:name")
    add("--method_kwargs", default=None, help="constants of --method, as JSON")
    add(
        "--show",
        default=None,
        help="what to show first, and its rule for r-: grpo, rlsd, 'cepo own' (none: --method, else our default)",
    )
    add("--output_dir", type=Path, default=Path(), help="where explain.html goes")
    add("--terminal", action="store_true", help="print to the terminal, and write no page")
    add("--open", action="store_true", help="open the page in the browser")
    return parser


@dataclass(frozen=True)
class _Job:
    """What to look at: either `rows` of a dataset, of which to sample, or `groups` that a run sampled."""

    model: Any
    processing_class: Any
    about: dict[str, str]
    rows: list[dict[str, Any]]
    groups: list[Group] | None = None
    other_model: Any = None


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Load what the command line names; what is returned does the work and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in options, model or data.
    """
    options = make_parser().parse_args(arguments)
    if options.open and options.terminal:
        raise ValueError("--open: --terminal writes no page; leave one of them out")
    if options.statistics and (options.open or options.terminal):
        raise ValueError("--statistics prints a table and writes no page; leave out --open and --terminal")
    if options.output is not None and not options.statistics:
        raise ValueError("--output is for --statistics, which was not given; --output_dir says where the page goes")
    if options.statistics:
        check_group_size(options.num_generations)
    if options.num_prompts is None:
        options.num_prompts = _RUN_PROMPTS if options.run else _STATISTICS_PROMPTS if options.statistics else 1
    quiet_libraries()
    given = {**credit_options(options, *CREDIT), **own_method(options)}
    own = None if options.method is None else find_method(options.method).name
    if options.show is None:
        options.show = own or f"cepo {DEFAULT_RULE}"
    (reward_func,) = load_reward_funcs(options.reward_funcs or verifier_of(options.dataset_name))
    if options.show not in (own, *METHODS):  # what there is of those depends on the data
        _variant(options.show, all_variants(given))  # refused before anything is loaded
    job = _of_run(options) if options.run else _of_dataset(options)
    if options.teacher_model_name_or_path is not None:
        other = load_teacher_model(
            options.teacher_model_name_or_path,
            job.processing_class,
            job.model.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        job = replace(job, other_model=other.to(job.model.device))
    variants = all_variants(given, columns=_columns_of(job))
    selected = _variant(options.show, variants)
    if options.statistics:
        if not selected.method.needs_teachers:
            raise ValueError(
                f"--statistics: {selected.name} scores no hints, so it has no evidence; name another --show"
            )
        return lambda console: _statistics(options, job, selected, reward_func, console)
    return lambda console: _explain(options, job, variants, selected, reward_func, console)


def _columns_of(job: "_Job") -> list[str]:
    rows = job.rows or [group.row for group in job.groups or []]
    return list(rows[0]) if rows else []


def _variant(name: str, variants: Sequence[Variant]) -> Variant:
    short = {variant.short: variant for variant in variants}
    if name == "cepo":
        name = f"cepo {DEFAULT_RULE}"
    if name in short:
        return short[name]
    others = f"choose one of {', '.join(repr(s) if ' ' in s else s for s in short)}"
    if name not in METHODS:
        raise ValueError(f"there is no {name!r} to show; {others}")
    if METHODS[name].needs_other_model:
        raise ValueError(f"--show {name} needs --teacher_model_name_or_path, a model with the same vocabulary")
    raise ValueError(f"--show {name}: that method has nothing to say of this data set; {others}")


def _of_dataset(options: argparse.Namespace) -> _Job:
    first, last = options.index, options.index + options.num_prompts
    if first < 0:
        raise ValueError(f"index must not be negative, got {first}")
    dataset = load_rows(options, last)
    if first >= len(dataset):
        raise ValueError(f"index {first}: the split {options.dataset_split!r} has {len(dataset)} rows")
    places = range(first, min(last, len(dataset)))
    chosen, split = dataset.select(places), f"the split {options.dataset_split!r}"
    named = f"row {first}" if len(places) == 1 else f"rows {first} to {places[-1]}"
    check_dataset(chosen, needs_solution=True, name=f"{named} of {split}")
    with broken_images_named(dataset, split, list(places)):
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
    """Rollouts that a run saved, read by the model that the run left."""
    run = Path(options.run).expanduser()
    if not run.is_dir():
        raise SavedError(f"--from: there is no such folder: {options.run}")
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
            f"--from: {error}. The run was given that name; a file is looked for from the folder that this is run in"
        ) from error
    if isinstance(dataset, IterableDataset):
        raise SavedError(f"--from: {data['dataset_name']} is a stream, in which rows cannot be found again")
    model, processing_class = load_policy(name, trust_remote_code=options.trust_remote_code)
    # Groups that have something to show, first.
    mixed = sorted(saved.groups, key=lambda rows: not any(row["advantage"] for row in rows))
    groups = restore(mixed[: options.num_prompts], dataset, processing_class)
    about = {
        "rollouts": f"sampled at step {saved.step} of the run {options.run}",
        "read by": f"{name}, as it is now, not as it was at that step",
        "data": f"{data['dataset_name']}, {data['dataset_split']}",
    }
    return _Job(model, processing_class, about, [], groups)


def _model_of(run: Path, step: int) -> str:
    """The checkpoint of that step if there is one, else the model that the run left, else its last checkpoint."""
    checkpoints = {int(m[1]): path for path in run.iterdir() if (m := _CHECKPOINT.fullmatch(path.name))}
    if step in checkpoints:
        return str(checkpoints[step])
    if holds_model(run):
        return str(run)
    if checkpoints:
        return str(checkpoints[max(checkpoints)])
    raise SavedError(f"--from: {run} holds no model; name one with --model_name_or_path")


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(options.max_completion_length, options.temperature, batch_size=options.batch_size)


def _groups(options: argparse.Namespace, job: _Job, reward_func: RewardFunc) -> list[Group]:
    """The run's groups, or one sampled for each row."""
    if job.groups is not None:
        return job.groups
    with seeded(options.seed):
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
    options: argparse.Namespace, job: _Job, groups: list[Group], variants: Sequence[Variant], temperature: float = 1.0
) -> list[list[Inspected]]:
    return [
        one
        for start in range(0, len(groups), _CHUNK)
        for one in inspect_with(
            job.model,
            job.processing_class,
            groups[start : start + _CHUNK],
            variants,
            max_tokens=options.teacher_batch_tokens,
            seed=str(options.seed),
            other_model=job.other_model,
            temperature=temperature,
        )
    ]


def _statistics(
    options: argparse.Namespace, job: _Job, selected: Variant, reward_func: RewardFunc, console: Console
) -> int:
    with console.status("sampling"):
        sampled = _groups(options, job, reward_func)
    # Only these have an advantage to redistribute.
    groups = [group for group in sampled if any(rollout.advantage for rollout in group.rollouts)]
    correct = fmean(attempt.correct is True for group in sampled for attempt in group.attempts)
    console.print(
        f"{counted(len(sampled), 'group')}, {correct:.1%} of the rollouts correct, {len(groups)} with correct and "
        "incorrect rollouts",
    )
    if not groups:
        console.print("Nothing to measure: no group has both correct and incorrect rollouts; take more --num_prompts.")
        return 1
    with console.status("scoring the rollouts under their hints"):
        inspected = _inspect(options, job, groups, [selected], options.temperature or 1.0)
    credit = [[one.credit[selected] for one in rollouts] for rollouts in inspected]
    found = evidence_statistics(
        job.processing_class, groups, credit, signed=selected.method.evidence_is_signed, seed=options.seed
    )
    with console.status("does the model follow its hints?"):
        followed = hint_following(job.model, job.processing_class, groups, credit, selected.options, _sampling(options))
    console.print(statistics_table(selected.name, found, followed))
    if options.output is not None:
        result = {
            **job.about,
            "method": selected.name,
            "options": explain_options(selected),
            "groups": len(sampled),
            "groups_with_advantage": len(groups),
            "correct": correct,
            "seed": options.seed,
            "evidence": found,
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
    with console.status("sampling"):
        groups = _groups(options, job, reward_func)
    with console.status("scoring the rollouts under their hints"):
        inspected = _inspect(options, job, groups, variants)
    known = options.dataset_name == FIGURES and bool(job.rows)
    shown = show(
        groups,
        inspected,
        job.processing_class,
        (lambda index, texts: filler_tokens(problem_of(job.rows[index]), texts)) if known else None,
    )
    if options.terminal:
        print_credit(console, shown, selected)
        return 0
    page = credit_page(
        shown,
        title="Which tokens get the credit",
        about=job.about,
        variants=variants,
        selected=selected,
    )
    output = options.output_dir / "explain.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, page)
    right = sum(attempt.correct is True for group in groups for attempt in group.attempts)
    total = sum(len(group.attempts) for group in groups)
    console.print(f"{right} of {total} rollouts are right", highlight=False)
    if not any(one.credit[selected].advantages.any() for rollouts in inspected for one in rollouts):
        other = "--step" if options.run else "--index or --seed"
        console.print(f"No token has an advantage by {selected.name}; try another {other}.", highlight=False)
    console.print(f"written to {output}", highlight=False, markup=False)
    if options.open and not webbrowser.open(output.resolve().as_uri()):
        console.print("--open: no browser on this machine; copy the page, which is one file")
    return 0
