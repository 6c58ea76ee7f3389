"""`cepo evaluate`: accuracy of a model on held-out problems, with its interval."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..data.checks import check_dataset
from ..data.evaluation import evaluate_accuracy
from ..data.loading import load_policy, load_reward_funcs, load_split, resolve_model
from ..tasks.figures import policy_path
from . import quiet_libraries
from .options import add_dataset, add_model, add_sampling, add_verifier, make_command_parser, positive


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "evaluate", "Sample one answer to each held-out problem and let the verifier judge it."
    )
    add_model(parser)
    data = add_dataset(parser)
    data.add_argument("--num_problems", type=positive, default=400, help="how many problems")
    add_verifier(add_sampling(parser))
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=None, help="where evaluation.json goes (none: the model's folder, or here)")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Load what the command line names; what is returned evaluates it and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in options, model or data.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    shipped = options.model_name_or_path is None
    name = policy_path() if shipped else options.model_name_or_path
    resolved = Path(resolve_model(name))
    # Beside the model, if it is a folder of the user's.
    beside = resolved if resolved.is_dir() and not shipped else Path()
    output = (options.output_dir or beside) / "evaluation.json"
    (reward_func,) = load_reward_funcs(options.reward_funcs)
    dataset = load_split(
        options.dataset_name, options.dataset_split, config=options.dataset_config, size=options.num_problems
    )
    check_dataset(dataset, needs_solution=True, name=f"the split {options.dataset_split!r}")
    dataset = dataset.select(range(min(options.num_problems, len(dataset))))
    model, processing_class = load_policy(name)
    return lambda console: _evaluate(options, model, processing_class, dataset, reward_func, output, console)


def _evaluate(options, model, processing_class, dataset, reward_func, output: Path, console: Console) -> int:
    with console.status("evaluating") as status:
        accuracy, answers = evaluate_accuracy(
            model,
            processing_class,
            dataset,
            max_completion_length=options.max_completion_length,
            temperature=options.temperature,
            batch_size=options.batch_size,
            seed=options.seed,
            reward_func=reward_func,
            on_progress=lambda done: status.update(f"evaluating: {done} of {len(dataset)} problems"),
        )
    result = {
        "model": options.model_name_or_path or "shipped",
        "dataset": options.dataset_name,
        "dataset_config": options.dataset_config,
        "split": options.dataset_split,
        "temperature": options.temperature,
        "seed": options.seed,
        **accuracy.as_dict(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"accuracy [bold]{accuracy}[/bold]", highlight=False)
    console.print(f"one of its answers: {answers[0]}", highlight=False, markup=False)
    console.print(f"written to {output}", highlight=False)
    return 0
