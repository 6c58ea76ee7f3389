"""Options that several commands share, and their parser."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from transformers.hf_argparser import string_to_bool

from ..data.embedded import EMBEDDED
from ..data.formats import DatasetOptions
from ..data.loading import load_split
from ..methods.registry import (
    all_options,
    applicable_options,
    default_text,
    find_method,
    method_options,
    own_options,
)
from ..tasks.figures import NAME as FIGURES
from ..tasks.figures import VARIANTS
from ..trainer.arguments import unknown_option

# `--name` or `--name true`, as in cepo train.
SWITCH: dict[str, Any] = {"type": string_to_bool, "nargs": "?", "const": True, "default": False}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Argparse's help with defaults, except None, False, and defaults that the help text states."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        named = action.default in (None, False) or "(default: " in str(action.help)
        return action.help if named else super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """A parser with one-line errors."""

    def error(self, message: str):
        if unknown := re.search(r"unrecognized arguments: (--\S+)", message):
            message = unknown_option([unknown[1]], self)
        raise ValueError(f"{message} ({self.prog} --help lists the options)")


def make_command_parser(command: str, description: str) -> CommandParser:
    parser = CommandParser(
        prog=f"cepo {command}",
        usage="%(prog)s [OPTIONS]",
        description=description,
        allow_abbrev=False,
        add_help=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument_group("help").add_argument("--help", "-h", action="help", help="this page")
    return parser


def add_model(parser: argparse.ArgumentParser) -> Any:
    """Add the options of the model; returns their group."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name_or_path",
        default=None,
        help="folder or name of a model or PEFT adapter (default: the shipped one)",
    )
    group.add_argument(
        "--trust_remote_code",
        **SWITCH,
        help="run code that comes with the model; read it first",
    )
    return group


def add_dataset(parser: argparse.ArgumentParser, *, split: str = "test") -> Any:
    """Add the options of the dataset; returns their group."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", default=FIGURES, help="figures, a file, a folder, or a name on the Hub")
    group.add_argument("--dataset_config", default=None, help=f"its configuration; figures: {', '.join(VARIANTS)}")
    group.add_argument("--dataset_split", default=split, help="split of the dataset")
    for one in fields(DatasetOptions):
        kind = string_to_bool if one.type is bool else str
        group.add_argument(f"--{one.name}", type=kind, default=one.default, help=one.metadata["help"])
    return group


def dataset_options(given: Mapping[str, Any]) -> DatasetOptions:
    """The format options of the dataset, from all options of a command."""
    return DatasetOptions(**{one.name: given[one.name] for one in fields(DatasetOptions) if one.name in given})


def load_rows(options: argparse.Namespace, size: int) -> Any:
    """The split that the options of `add_dataset` name; for the figures task, `size` problems."""
    return load_split(
        options.dataset_name,
        options.dataset_split,
        config=options.dataset_config,
        size=size,
        options=dataset_options(vars(options)),
    )


def add_sampling(parser: argparse.ArgumentParser, *, batch_size: int = 128, temperatures: str | None = None) -> Any:
    """Add the options of sampling; returns their group. `temperatures`: the default of `--temperatures`."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max_completion_length", type=positive, default=256, help="longest answer, in tokens")
    if temperatures is None:
        group.add_argument("--temperature", type=temperature, default=1.0, help="0 is greedy")
    else:
        text = "separated by commas; 0 is greedy"
        group.add_argument("--temperatures", type=several_temperatures, default=temperatures, help=text)
    group.add_argument("--batch_size", type=positive, default=batch_size, help="answers sampled in one batch")
    group.add_argument("--seed", type=int, default=0, help="seed of sampling and of random draws by methods")
    return group


def add_verifier(group: Any) -> None:
    group.add_argument(
        "--reward_funcs",
        nargs=1,
        default=None,
        help="the verifier: a name in trl.rewards, or module.function (default: answer_reward, or the task's verifier)",
    )
    group.add_argument(
        "--correctness_threshold", type=float, default=0.5, help="an answer is correct if its reward is at least this"
    )


def verifier_of(dataset_name: str) -> list[str]:
    """The default verifier: from an embedded task's recipe, or `answer_reward`."""
    recipe = EMBEDDED[dataset_name].recipe() if dataset_name in EMBEDDED else {}
    return list(recipe.get("reward_funcs", ["answer_reward"]))


def add_credit(parser: argparse.ArgumentParser, names: Sequence[str], method: str | None = None) -> None:
    """Add the named options of methods, and the own options of `method`, which apply to this method alone."""
    group = parser.add_argument_group("credit")
    own = own_options(method)
    for name, one in {**{name: all_options()[name] for name in names}, **own}.items():
        kinds = {*get_args(one.type), one.type}
        kind: Any = next((kind for kind in (int, float) if kind in kinds), string_to_bool if bool in kinds else str)
        default = one.default if name in own else default_text(name)
        group.add_argument(f"--{name}", type=kind, default=None, help=f"{one.help} (default: {default})")
    group.add_argument(
        "--teacher_batch_tokens", type=positive, default=16384, help="most tokens in a teacher's forward pass"
    )


def credit_options(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options of methods that the user gave, with `--method`."""
    names = (*names, *own_options(options.method))
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    method_options("cepo", **applicable_options(given, "cepo"))
    if options.method is not None:
        find_method(options.method).configure(**applicable_options(given, options.method))
        given["method"] = options.method
    return given


def check_group_size(num_generations: int) -> None:
    """Refuse groups of one rollout."""
    if num_generations < 2:
        raise ValueError("num_generations: a group of one rollout has no advantage; use at least 2")


def temperature(text: str) -> float:
    number = float(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 (the most likely token) or above, got {number}")
    return number


def several_temperatures(text: str) -> list[float]:
    return [temperature(part) for part in text.split(",")]


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number
