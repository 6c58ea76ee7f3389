"""Write train.jsonl and test.jsonl in TRL's columns from a task of reasoning-gym.

    pip install '.[smollm]'
    python -m experiments.make_reasoning_gym --task chain_sum --num_problems 400 --output_dir data \
        --settings min_terms=3 max_terms=3 min_digits=1 max_digits=1

`prompt` is a conversation: few-shot examples as earlier turns, then the question. `solution` is the answer. The
examples and the problems of both files are disjoint.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

INSTRUCTION = "\n\nPut the final answer in \\boxed{}."
_CHAIN = re.compile(r"-?\d+(?: [+*-] \d+)+")
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda one, other: one + other,
    "-": lambda one, other: one - other,
    "*": lambda one, other: one * other,
}


class TaskError(ValueError):
    """A mistake in the options; the message names the option and the fix."""


def worked(entry: dict[str, Any]) -> str:
    """The answer of a few-shot example, with steps for left-to-right sums."""
    ending = f"The answer is \\boxed{{{entry['answer']}}}."
    chain = entry.get("metadata", {}).get("expression", "")
    if not _CHAIN.fullmatch(chain):
        return ending
    first, *rest = chain.split()
    value, steps = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        after = _OPERATORS[sign](value, int(number))
        steps.append(f"{value} {sign} {number} = {after}.")
        value = after
    # Products before sums do not give this value.
    return f"{' Then '.join(steps)} {ending}" if str(value) == entry["answer"] else ending


def rows_of(entries: Iterable[dict[str, Any]], examples: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """Rows in TRL's columns.

    Args:
        entries: Entries of reasoning-gym: `question`, `answer`, `metadata`.
        examples: Entries for the few-shot turns.
    """
    shown = []
    for one in examples:
        shown.append({"role": "user", "content": one["question"].strip() + INSTRUCTION})
        shown.append({"role": "assistant", "content": worked(one)})
    for entry in entries:
        question = {"role": "user", "content": entry["question"].strip() + INSTRUCTION}
        yield {"prompt": [*shown, question], "solution": entry["answer"]}


def split(entries: Iterable[dict[str, Any]], *sizes: int) -> list[list[dict[str, Any]]]:
    """Disjoint lists of these sizes, in order, without duplicate questions.

    Raises:
        TaskError: If there are too few different questions.
    """
    seen: set[str] = set()
    found: list[dict[str, Any]] = []
    for entry in entries:
        if len(found) == sum(sizes):
            break
        if entry["question"] not in seen and isinstance(entry["answer"], str):
            seen.add(entry["question"])
            found.append(entry)
    if len(found) < sum(sizes):
        raise TaskError(
            f"--num_problems: with these --settings the task has {len(found)} different problems, fewer than the "
            f"{sum(sizes)} requested; request fewer, or longer ones"
        )
    ends = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return [found[start:end] for start, end in pairwise(ends)]


def load_task(task: str, settings: dict[str, Any], seed: int, size: int) -> Iterable[dict[str, Any]]:
    """Entries of a task.

    Raises:
        TaskError: If reasoning-gym is missing, or does not know the task or a setting.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise TaskError("the package reasoning-gym is missing: pip install '.[smollm]'") from error
    if task not in DATASETS:
        raise TaskError(f"--task: reasoning-gym has no {task!r}; it has {', '.join(sorted(DATASETS))}")
    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise TaskError(f"--settings: {task} does not take them: {error}") from error


def setting(text: str) -> tuple[str, Any]:
    """`max_terms=3` as a name and a value, which is JSON or else text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"write NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="chain_sum", help="name of a task of reasoning-gym")
    parser.add_argument(
        "--settings", nargs="*", type=setting, default=[], metavar="NAME=VALUE", help="settings of the task"
    )
    parser.add_argument("--num_problems", type=int, default=400, help="training problems")
    parser.add_argument("--num_test", type=int, default=100, help="held-out problems")
    parser.add_argument("--examples", type=int, default=3, help="few-shot examples in each prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="folder of the two files")
    options = parser.parse_args()
    sizes = options.examples, options.num_test, options.num_problems
    try:
        if min(sizes) < 0 or options.num_problems < 1:
            raise TaskError("--num_problems must be at least 1, --num_test and --examples at least 0")
        # Small tasks repeat questions.
        task = load_task(options.task, dict(options.settings), options.seed, 4 * sum(sizes))
        examples, test, train = split(task, *sizes)
    except TaskError as error:
        print(f"make_reasoning_gym: error: {error}", file=sys.stderr)
        return 2
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, entries in (("train", train), ("test", test)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(entries, examples))
        (options.output_dir / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(train)} problems in {options.output_dir}/train.jsonl, {len(test)} in test.jsonl; the first:")
    for message in [*next(rows_of(train or test, examples))["prompt"]]:
        print(f"{message['role']}: {message['content']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
