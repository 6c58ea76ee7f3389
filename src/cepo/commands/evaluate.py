"""`cepo evaluate`: accuracy of a model on held-out problems, greedy and sampled, with 95 % intervals."""

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
from . import quiet_libraries
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
    parser = make_command_parser("evaluate", "Sample answers to held-out problems and grade them with the verifier.")
    add_model(parser)
    add_dataset(parser).add_argument("--num_problems", type=positive, default=400, help="number of problems")
    sampling = add_sampling(parser, temperatures="0,1")
    sampling.add_argument(
        "--num_samples", type=positive, default=8, help="answers per problem at temperatures above 0; k of pass@k"
    )
    add_verifier(sampling)
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, help="folder of evaluation.json (default: the model's folder, or the current one)")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Load model and data and return the job that evaluates."""
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    name = options.model_name_or_path or policy_path()
    folder = Path(resolve_model(name))
    if folder == Path(policy_path()) or not folder.is_dir():  # the shipped policy, or a model of the Hub
        folder = Path()
    output = (options.output_dir or folder) / "evaluation.json"
    (reward_func,) = load_reward_funcs(options.reward_funcs or verifier_of(options.dataset_name))
    dataset = load_rows(options, options.num_problems)
    check_dataset(dataset, needs_solution=True, name=f"the split {options.dataset_split!r}")
    dataset = dataset.select(range(min(options.num_problems, len(dataset))))
    model, processing_class = load_policy(name, trust_remote_code=options.trust_remote_code)
    return lambda console: _evaluate(options, model, processing_class, dataset, reward_func, output, console)


def _evaluate(
    options: argparse.Namespace,
    model: Any,
    processing_class: Any,
    dataset: Any,
    reward_func: Any,
    output: Path,
    console: Console,
) -> int:
    results: list[Evaluation] = []
    for value in options.temperatures:
        with console.status(f"temperature {value:g}") as status:
            results.append(
                evaluate(
                    model,
                    processing_class,
                    dataset,
                    Sampling(options.max_completion_length, value, batch_size=options.batch_size),
                    samples=options.num_samples,
                    seed=options.seed,
                    reward_func=reward_func,
                    threshold=options.correctness_threshold,
                    on_progress=lambda done: status.update(f"temperature {value:g}: {done} answers"),  # noqa: B023
                )
            )
    summary = {
        "model": options.model_name_or_path or "shipped",
        "dataset": options.dataset_name,
        "dataset_config": options.dataset_config,
        "split": options.dataset_split,
        "seed": options.seed,
        "temperatures": [result.as_dict() for result in results],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, json.dumps(summary, indent=2) + "\n")
    console.print(evaluation_table(results, f"{len(dataset)} problems, 95 % intervals"), soft_wrap=False)
    if Path(options.dataset_name).is_file():
        console.print(f"{options.dataset_name} has one split: this is no held-out accuracy of a model trained on it")
    console.print(f"first answer: {results[0].answers[0]}")
    console.print(f"written to {output}")
    return 0


def evaluation_table(results: Sequence[Evaluation], caption: str) -> Table:
    """A row for each measure at each temperature."""
    table = plain_table(caption, gap=2)
    for name in ("answers", "", "value", "95 % interval"):
        table.add_column(name, no_wrap=True)
    for result in results:
        rows: list[tuple[str, Any, str]] = [("correct", result.accuracy, ".1%")]
        if result.samples > 1:
            rows.append((f"pass@{result.samples}", result.pass_at(result.samples), ".1%"))
        entropies = {"entropy, content [nats]": result.content_entropy, "entropy [nats]": result.entropy}
        rows += [(name, entropy, ".3f") for name, entropy in entropies.items() if entropy is not None]
        first = f"temperature {result.temperature:g}" if result.temperature else "greedy"
        for name, estimate, form in rows:
            low, high = estimate.interval
            table.add_row(first, name, f"{estimate.value:{form}}", f"[{low:{form}}, {high:{form}}]")
            first = ""
        counts = {"truncated": result.clipped, "without a verdict (incorrect)": result.missing}
        for name, count in counts.items():
            if count:
                table.add_row("", name, f"{count} of {len(result.answers)}", "")
        table.add_section()
    return table
