"""`cepo evaluate`: accuracy of a model on held-out problems, greedy and sampled, with its intervals.

With `--suite` the paper's benchmarks, which `suite.py` runs.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data.accuracy import Evaluation
from ..data.checks import check_dataset
from ..data.evaluation import evaluate
from ..data.files import write_whole
from ..data.models import load_policy, resolve_model
from ..data.rewards import load_reward_funcs
from ..data.sampling import Sampling
from ..inspection.tables import plain_table
from ..tasks.figures import policy_path
from . import quiet_libraries, suite
from .options import (
    add_dataset,
    add_model,
    add_sampling,
    add_verifier,
    load_rows,
    make_command_parser,
    positive,
    verifier_of,
)


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "evaluate", "Ask a model held-out problems, greedily and by sampling, and let the verifier judge its answers."
    )
    add_model(parser)
    data = add_dataset(parser)
    data.add_argument("--num_problems", type=positive, default=400, help="how many problems")
    sampling = add_sampling(parser, temperatures="0,1")
    sampling.add_argument(
        "--num_samples", type=positive, default=8, help="answers to each problem at temperatures above 0; pass@k's k"
    )
    add_verifier(sampling)
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=None, help="where evaluation.json goes (none: the model's folder, or here)")
    parser.add_argument_group("benchmarks").add_argument(
        "--suite", choices=suite.SUITES, default=None, help=suite.ABOUT
    )
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Load what the command line names; what is returned evaluates it and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in options, model or data.
    """
    if any(argument == "--suite" or argument.startswith("--suite=") for argument in arguments):
        return suite.prepare(arguments)
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    name = options.model_name_or_path or policy_path()
    resolved = Path(resolve_model(name))
    shipped = resolved == Path(policy_path())
    # Beside the model, if it is a folder of the user's.
    beside = resolved if resolved.is_dir() and not shipped else Path()
    output = (options.output_dir or beside) / "evaluation.json"
    (reward_func,) = load_reward_funcs(options.reward_funcs or verifier_of(options.dataset_name))
    dataset = load_rows(options, options.num_problems)
    check_dataset(dataset, needs_solution=True, name=f"the split {options.dataset_split!r}")
    dataset = dataset.select(range(min(options.num_problems, len(dataset))))
    model, processing_class = load_policy(name, trust_remote_code=options.trust_remote_code)
    return lambda console: _evaluate(options, model, processing_class, dataset, reward_func, output, console)


def _evaluate(options, model, processing_class, dataset, reward_func, output: Path, console: Console) -> int:
    found: list[Evaluation] = []
    for at in options.temperatures:
        wanted = len(dataset) * (options.num_samples if at > 0 else 1)
        with console.status(f"temperature {at:g}") as status:
            one = evaluate(
                model,
                processing_class,
                dataset,
                Sampling(options.max_completion_length, at, batch_size=options.batch_size),
                samples=options.num_samples,
                seed=options.seed,
                reward_func=reward_func,
                threshold=options.correctness_threshold,
                on_progress=lambda done: status.update(f"temperature {at:g}: {done} of {wanted} answers"),  # noqa: B023
            )
        found.append(one)
    result = {
        "model": options.model_name_or_path or "shipped",
        "dataset": options.dataset_name,
        "dataset_config": options.dataset_config,
        "split": options.dataset_split,
        "seed": options.seed,
        "temperatures": [one.as_dict() for one in found],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, json.dumps(result, indent=2) + "\n")
    console.print(evaluation_table(found, f"{len(dataset)} problems, 95 % intervals"), soft_wrap=False)
    if Path(options.dataset_name).is_file():
        console.print(
            f"{options.dataset_name} is one file: of a model that was trained on it, this is no held-out accuracy",
            highlight=False,
            markup=False,
        )
    console.print(f"one of its answers: {found[0].answers[0]}", highlight=False, markup=False)
    console.print(f"written to {output}", highlight=False)
    return 0


def evaluation_table(found: Sequence[Evaluation], caption: str) -> Table:
    """A line for each measure of each temperature, for a terminal of 80 columns."""
    shown = plain_table(caption, gap=2)
    for name in ("answers", "", "value", "95 % interval"):
        shown.add_column(name, no_wrap=True)
    for one in found:
        for row in measures_of(one):
            shown.add_row(*row)
        shown.add_section()
    return shown


def measures_of(one: Evaluation) -> list[tuple[str, str, str, str]]:
    """(temperature, measure, value, interval) of what was found at one temperature."""
    rows: list[tuple[str, Any, str]] = [("right", one.accuracy, ".1%")]
    if one.samples > 1:
        rows.append((f"pass@{one.samples}", one.pass_at(one.samples), ".1%"))
    if one.content_entropy is not None:
        rows.append(("entropy, content", one.content_entropy, ".3f"))
    if one.entropy is not None:
        rows.append(("entropy, all", one.entropy, ".3f"))
    first = "greedy" if one.temperature == 0 else f"temperature {one.temperature:g}"
    lines = []
    for name, estimate, form in rows:
        low, high = estimate.interval
        unit = " nats" if form == ".3f" else ""
        lines.append((first, name, f"{estimate.value:{form}}{unit}", f"[{low:{form}}, {high:{form}}]"))
        first = ""
    if one.clipped:
        lines.append(("", "cut off", f"{one.clipped} of {len(one.answers)}", "by the length limit"))
    if one.missing:
        lines.append(("", "without a verdict", f"{one.missing} of {len(one.answers)}", "count as wrong"))
    return lines
