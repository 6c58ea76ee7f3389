"""The command `cepo`."""

import argparse
import os
import sys
from importlib import import_module

from . import __version__

_COMMANDS = {
    "train": "train a policy with CEPO or another method; without options: the embedded figures task, in minutes",
    "evaluate": "accuracy of a model on held-out problems, greedy and sampled, with 95 %% intervals",
    "explain": "the credit of each token of a group's rollouts, as a page or in the terminal; statistics of evidence",
    "compare": "train several methods on an equal budget and compare them seed by seed",
    "merge": "merge PEFT adapters into their base model",
    "suite": "the paper's five benchmarks, with lmms-eval",
}
_EXAMPLES = """\
examples:
  cepo train
  cepo train --method grpo --seed 1 --output_dir grpo-1
  cepo train --model_name_or_path Qwen/Qwen3-VL-2B-Instruct --dataset_name my-org/geometry --use_peft --bf16 true
  cepo train --config run.yaml --learning_rate 5e-6
  cepo train --config run.yaml --accelerate_config fsdp2 --num_processes 8
  cepo evaluate --model_name_or_path cepo-figures
  cepo explain --index 3 --output_dir credit

cepo COMMAND --help lists the options of a command."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the commands; a command's module parses the options of the command, which takes importing torch."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help="show errors in full")
    parser = argparse.ArgumentParser(
        prog="cepo",
        description="Reinforcement learning from verifiable rewards with token-level credit.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"cepo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, title="commands", metavar="COMMAND")
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, add_help=False, allow_abbrev=False, parents=[common])
        if name == "train":  # has its own help page
            command.add_argument("--help", "-h", action="store_true", dest="train_help")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 1 for a failure, 2 for a user's mistake, 130 after Ctrl-C.
    """
    options, rest = make_parser().parse_known_args(arguments)
    # By default OpenMP's threads spin while they wait, which slows down runs beside other processes. The variable is
    # read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if getattr(options, "train_help", False):
        from .commands.train_help import train_help

        print(train_help(), end="")
        return 0
    from .inspection.console import PlainConsole

    preparing = True
    try:
        job = import_module(f".commands.{options.command}", __package__).prepare(rest)
        preparing = False
        return job(PlainConsole(soft_wrap=True))
    except KeyboardInterrupt:
        resume = "; the same command resumes" if options.command in ("compare", "suite") else ""
        print(f"\ncepo: stopped{resume}", file=sys.stderr)
        return 130
    except Exception as error:
        status = _status_of(error, preparing)
        if status is None or "traceback" in options:
            raise
        # All processes of a run raise errors of preparation and of gradients; the first one prints them.
        if not (preparing or status == 1) or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"cepo: error: {_message(error)}", file=sys.stderr)
        return status


def _status_of(error: Exception, preparing: bool) -> int | None:
    """Exit status for an error whose message names the fix; None for other errors, which need a traceback."""
    if preparing:
        return 2 if isinstance(error, (ValueError, TypeError, OSError, ImportError)) else None

    from .compare.jobs import BusyError
    from .data.errors import DatasetError, LoadingError
    from .data.reward_validation import RewardError
    from .trainer.nonfinite_gradients import GradientError

    if isinstance(error, GradientError):
        return 1
    return 2 if isinstance(error, (DatasetError, RewardError, LoadingError, BusyError)) else None


def _message(error: Exception) -> str:
    """The error on one line, then its notes, such as commands to copy."""
    from .data.escape import escape, one_line

    return "\n".join([one_line(str(error)) or type(error).__name__, *map(escape, getattr(error, "__notes__", []))])


if __name__ == "__main__":
    sys.exit(main())
