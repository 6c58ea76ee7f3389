"""Options that several commands share, and their parser."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from transformers.hf_argparser import string_to_bool

from ..data.embedded import EMBEDDED
from ..data.formats import DatasetOptions
from ..data.loading import load_split
from ..methods.options import DEFAULTED, MethodOptions, constants_of, default_text, readable
from ..methods.registry import find_method
from ..tasks.figures import NAME as FIGURES
from ..tasks.figures import VARIANTS

# --name and --name true, as options of cepo train are switched on.
SWITCH: dict[str, Any] = {"type": string_to_bool, "nargs": "?", "const": True, "default": False}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Argparse's help with defaults, except None, False, and those that the text names."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        named = action.default in (None, False) or "(default: " in str(action.help)
        return action.help if named else super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """Options by group, and errors of one line."""

    def error(self, message: str):
        unknown = re.search(r"unrecognized arguments: (--\S+)", message)
        if unknown:
            name = unknown[1].partition("=")[0]
            close = get_close_matches(name, self._option_string_actions, n=1)
            message = f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else "")
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
    """The model's option; its group, for more of them."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name_or_path", default=None, help="folder or name of a model or PEFT adapter (none: the shipped one)"
    )
    group.add_argument(
        "--trust_remote_code",
        **SWITCH,
        help="run code that comes with the model; read it first",
    )
    return group


def add_dataset(parser: argparse.ArgumentParser, *, split: str = "test") -> Any:
    """The data set's options; their group, for more of them."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", default=FIGURES, help="figures, a file, a folder, or a name on the Hub")
    group.add_argument("--dataset_config", default=None, help=f"its configuration; figures: {', '.join(VARIANTS)}")
    group.add_argument("--dataset_split", default=split, help="which split")
    for one in fields(DatasetOptions):
        kind = string_to_bool if one.type is bool else str
        group.add_argument(f"--{one.name}", type=kind, default=one.default, help=one.metadata["help"])
    return group


def dataset_options(given: Mapping[str, Any]) -> DatasetOptions:
    """How the data set is written, of all that a command was given."""
    return DatasetOptions(**{one.name: given[one.name] for one in fields(DatasetOptions) if one.name in given})


def load_rows(options: argparse.Namespace, size: int) -> Any:
    """The split that the options of `add_dataset` name; figures: so many problems.

    Raises:
        ValueError: If it is not there, or not written as they say.
    """
    return load_split(
        options.dataset_name,
        options.dataset_split,
        config=options.dataset_config,
        size=size,
        options=dataset_options(vars(options)),
    )


def add_sampling(parser: argparse.ArgumentParser, *, batch_size: int = 128, temperatures: str | None = None) -> Any:
    """The options of sampling; their group, for more of them. With `temperatures`, several, by default these."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max_completion_length", type=positive, default=256, help="longest answer, in tokens")
    if temperatures is None:
        group.add_argument("--temperature", type=temperature, default=1.0, help="0 takes the most likely token")
    else:
        text = "with commas between; 0 is greedy: the most likely token"
        group.add_argument("--temperatures", type=several_temperatures, default=temperatures, help=text)
    group.add_argument("--batch_size", type=positive, default=batch_size, help="answers sampled at a time")
    group.add_argument("--seed", type=int, default=0, help="of sampling, and of what methods draw")
    return group


def add_verifier(group: Any) -> None:
    group.add_argument(
        "--reward_funcs",
        nargs=1,
        default=None,
        help="the verifier: a name in trl.rewards, or module.function (none: answer_reward; figures: its own)",
    )
    group.add_argument(
        "--correctness_threshold", type=float, default=0.5, help="an answer is right if its reward is at least this"
    )


def verifier_of(dataset_name: str) -> list[str]:
    """The verifier where none is named: an embedded task's own, which its recipe names, or `answer_reward`."""
    recipe = EMBEDDED[dataset_name].recipe() if dataset_name in EMBEDDED else {}
    return list(recipe.get("reward_funcs", ["answer_reward"]))


def add_credit(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options of methods, as `cepo train` has them."""
    group = parser.add_argument_group("credit")
    for name in names:
        field = MethodOptions.__dataclass_fields__[name]
        kinds = {"evidence_coefficient": float, "evidence_clip": float, "max_negatives": int}
        default = default_text(name) if name in DEFAULTED else field.default
        text = f"{field.metadata['help'].rstrip('.')} (default: {default})"
        group.add_argument(f"--{name}", type=kinds.get(name, str), default=None, help=text)
    group.add_argument(
        "--teacher_batch_tokens", type=positive, default=16384, help="most tokens in a teacher's forward pass"
    )


def credit_options(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options of methods that the user gave, refused where they cannot be.

    Raises:
        ValueError: Naming the option.
    """
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    MethodOptions(**readable(given, MethodOptions.method))
    return given


def own_method(options: argparse.Namespace) -> dict[str, Any]:
    """`--method` and its `--method_kwargs`, where they were given.

    Raises:
        ValueError: If there is no such method, or it does not take these constants.
    """
    if options.method is None:
        if options.method_kwargs is not None:
            raise ValueError("--method_kwargs are the constants of --method, which was not given")
        return {}
    given = {"method": options.method}
    if options.method_kwargs is not None:
        given["method_kwargs"] = options.method_kwargs
    constants_of(find_method(options.method), options.method_kwargs)
    return given


def check_group_size(num_generations: int) -> None:
    """Refuse groups in which nobody has an advantage.

    Raises:
        ValueError: Naming the option.
    """
    if num_generations < 2:
        raise ValueError("num_generations: a group of one rollout has no advantage to place; take at least 2")


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
