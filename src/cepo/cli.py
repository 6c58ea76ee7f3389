"""The command `cepo`."""

import os
import sys
from importlib import import_module

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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 for a failure, 2 for a user's mistake, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(_HELP, end="")
        return 0
    if command == "--version":
        from . import __version__

        print(f"cepo {__version__}")
        return 0
    if command not in ("train", "evaluate", "merge", "explain", "compare"):
        print(f"cepo: error: unknown command {command!r}; cepo --help lists the commands", file=sys.stderr)
        return 2
    if command == "train" and ("--help" in rest or "-h" in rest or "--help-all" in rest):
        from .commands.train_help import train_help

        print(train_help("--help-all" in rest), end="")
        return 0
    return _run(command, rest, traceback)


def _let_threads_sleep() -> None:
    """OpenMP's threads wait for each other in a busy loop, in which another process beside them is waited for too.

    Not if the user has said how to wait.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "0"  # read once, when torch is loaded


def _run(command: str, arguments: list[str], traceback: bool) -> int:
    _let_threads_sleep()
    from .inspection.console import PlainConsole

    if command == "train" and any(argument.startswith("--dry_run") for argument in arguments):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it asks nobody
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
    from .data.guarded import RewardError
    from .methods.faults import MethodError
    from .trainer.guarded import GradientError

    try:
        return job(PlainConsole(soft_wrap=True))
    except KeyboardInterrupt:
        print("\ncepo: stopped", file=sys.stderr)
        return 130
    except (DatasetError, RewardError, MethodError) as error:  # what no check could see: a row of a stream, a function
        if traceback:
            raise
        more = "; --traceback shows how it came there" if error.__cause__ is not None else ""
        print(f"cepo: error: {_what(error)}" + more, file=sys.stderr)
        return 2
    except GradientError as error:  # every process says it
        if traceback:
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"cepo: error: {_what(error)}", file=sys.stderr)
        return 1


def _what(error: Exception) -> str:
    """A mistake on one line, and the lines of its notes, such as commands to copy."""
    from .data.visible import one_line, visible

    return "\n".join([one_line(str(error)) or type(error).__name__, *map(visible, getattr(error, "__notes__", []))])


if __name__ == "__main__":
    sys.exit(main())
