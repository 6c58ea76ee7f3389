"""The command `cepo`."""

import argparse
import os
import sys
from importlib import import_module
from typing import Any

_HELP = """\
cepo: reinforcement learning from verifiable rewards in which every token gets its own share of the credit

usage: cepo COMMAND [OPTIONS]

commands:
  train       train a policy with CEPO or one of its siblings; with no options: the embedded figures task, in minutes
  evaluate    accuracy of a model on held-out problems, with its interval; --suite paper: the paper's five benchmarks
  merge       PEFT adapters written into their model: a folder that loads without PEFT
  explain     which tokens of a group's rollouts get the credit: a page to read, or in the terminal; --statistics: how
              much evidence there is, on which tokens, and whether the model follows its hints
  compare     several methods at one budget, seed by seed, with intervals

  cepo COMMAND --help shows a command's options.

examples:
  cepo train
  cepo train --method grpo --seed 1 --output_dir grpo-1
  cepo train --model_name_or_path Qwen/Qwen3-VL-2B-Instruct --dataset_name my-org/geometry --use_peft --bf16 true
  cepo train --config run.yaml --learning_rate 5e-6
  cepo train --config run.yaml --accelerate_config fsdp2 --num_processes 8
  cepo evaluate --model_name_or_path cepo-figures
  cepo merge --model_name_or_path adapters --output_dir merged
  cepo explain --index 3 --output_dir credit

options:
  --help      this page
  --version   the version
  --traceback show where in the code an error arose (put it anywhere)
"""


class _Parser(argparse.ArgumentParser):
    """Commands, and the options that all of them have; each command's module parses the rest."""

    def error(self, message: str):
        unknown = message.partition("invalid choice: ")[2].partition(" (choose")[0]
        raise ValueError(f"unknown command {unknown}; cepo --help lists the commands" if unknown else message)


def _make_parser() -> _Parser:
    plain: dict[str, Any] = {"add_help": False, "allow_abbrev": False, "argument_default": argparse.SUPPRESS}
    parser = _Parser(prog="cepo", **plain)
    commands = parser.add_subparsers(dest="command", parser_class=_Parser)
    for name in ("train", "evaluate", "merge", "explain", "compare", "help"):
        command = commands.add_parser(name, **plain)
        command.add_argument("--traceback", action="store_true")
        if name == "train":
            command.add_argument("--help", "-h", action="store_true", default=argparse.SUPPRESS, dest="train_help")
    for flags in (("--help", "-h"), ("--version",), ("--traceback",)):
        parser.add_argument(*flags, action="store_true", default=False)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 for a failure, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        options, rest = _make_parser().parse_known_args(arguments)
        if options.command is None and rest:
            raise ValueError(f"unknown command {rest[0]!r}; cepo --help lists the commands")
    except ValueError as error:
        print(f"cepo: error: {_what(error)}", file=sys.stderr)
        return 2
    if options.version:
        from . import __version__

        print(f"cepo {__version__}")
        return 0
    if options.help or options.command in (None, "help"):
        print(_HELP, end="")
        return 0
    if "train_help" in options:
        from .commands.train_help import train_help

        print(train_help(), end="")
        return 0
    return _run(options.command, rest, options.traceback)


def _let_threads_sleep() -> None:
    """OpenMP's threads wait for each other in a busy loop, in which another process beside them is waited for too.

    Not if the user has said how to wait.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "0"  # read once, when torch is loaded


def _run(command: str, arguments: list[str], traceback: bool) -> int:
    _let_threads_sleep()
    from .inspection.console import PlainConsole

    try:
        # What goes wrong while a command prepares is the user's to fix; what goes wrong later is ours to explain.
        job = import_module(f".commands.{command}", __package__).prepare(arguments)
    except KeyboardInterrupt:
        print("\ncepo: stopped before anything was done", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        if traceback:
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes that were started together, one says it
            print(f"cepo: error: {_what(error)}", file=sys.stderr)
        return 2
    from .data.checks import DatasetError
    from .data.reward_validation import RewardError
    from .trainer.nonfinite_gradients import GradientError

    try:
        return job(PlainConsole(soft_wrap=True))
    except KeyboardInterrupt:
        print("\ncepo: stopped", file=sys.stderr)
        return 130
    except (DatasetError, RewardError) as error:  # a row of a stream, a reward: seen by no check before training
        if traceback:
            raise
        print(f"cepo: error: {_what(error)}", file=sys.stderr)
        return 2
    except GradientError as error:  # every process says it
        if traceback:
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"cepo: error: {_what(error)}", file=sys.stderr)
        return 1


def _what(error: Exception) -> str:
    """A mistake on one line, and the lines of its notes, such as commands to copy."""
    from .data.escape import escape, one_line

    return "\n".join([one_line(str(error)) or type(error).__name__, *map(escape, getattr(error, "__notes__", []))])


if __name__ == "__main__":
    sys.exit(main())
