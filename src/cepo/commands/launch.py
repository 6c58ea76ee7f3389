"""`cepo train --accelerate_config NAME`: the same command on several processes, by accelerate's launcher, as in TRL."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, NoReturn

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import patch_environment
from rich.console import Console
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from ..data.yaml_files import read_yaml
from ..trainer.arguments import CommandLine, make_parser, unknown_option

FLAG = "--accelerate_config"
# Set for launched processes, whose YAML files still hold accelerate's options.
LAUNCHED = "CEPO_LAUNCHED"


def accelerate_options(line: CommandLine, command: list[str]) -> tuple[Namespace, Any]:
    """What is no option of `cepo train`, as arguments of `accelerate launch`.

    Args:
        line: A command line with `--accelerate_config`.
        command: Arguments of the launched `cepo`.

    Returns:
        accelerate's arguments, and the configuration that they name.

    Raises:
        ValueError: For an unknown option, or a configuration that is not there or not accelerate's.
    """
    words = [part for word in (*line.more_config, *line.more_flags) for part in word.split("=", word.startswith("--"))]
    parser = launch_command_parser()
    known = {FLAG, *(flag for action in parser._actions for flag in action.option_strings)}
    flags = [word for word in words if word.startswith("--")]
    unknown = [flag for flag in flags if flag not in known] if flags else words
    if unknown:
        raise ValueError(unknown_option(unknown, make_parser()))
    if FLAG not in flags:
        named = ", ".join(flag.removeprefix("--") for flag in flags)
        raise ValueError(f"{named}: for accelerate, which starts no process without accelerate_config")

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"accelerate's options: {message}")

    parser.error = refuse  # it prints its help page and exits
    try:
        words = resolve_accelerate_config_argument(words)
    except ValueError as error:
        names = "single_gpu, multi_gpu, fsdp1, fsdp2, zero1, zero2, zero3"
        raise ValueError(f"{FLAG}: {error} Its names: {names}.") from error
    found = parser.parse_args([*words, "-m", "cepo.cli", *command])
    if found.training_script != "cepo.cli":
        raise ValueError(unknown_option([found.training_script], make_parser()))
    read_yaml(Path(found.config_file), FLAG)  # for its errors
    try:
        return found, load_config_from_file(found.config_file)
    except (KeyError, TypeError, AttributeError) as error:  # values of other types than accelerate's
        raise ValueError(f"{FLAG}: {found.config_file} is no configuration of accelerate's: {error}") from error


def prepare_launch(line: CommandLine, arguments: list[str]) -> Callable[[Console], int]:
    """Return the job that starts the processes and waits for them; signals are accelerate's and torchrun's to handle.

    Args:
        line: The command line of `cepo train`.
        arguments: The same as a list.

    Raises:
        ValueError: As `accelerate_options`.
    """
    left = list(line.more_flags)
    own = [word for word in arguments if not (left and word == left[0] and [left.pop(0)])]
    found, _ = accelerate_options(line, ["train", *own])

    def job(console: Console) -> int:  # noqa: ARG001
        try:
            with patch_environment(**{LAUNCHED: "1"}):
                launch_command(found)
        except SignalException as error:  # of torchrun, which has passed it on and waited for the processes
            return 128 + error.sigval
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
        except CalledProcessError as error:  # of a single process
            codes = {error.returncode}
        else:
            return 0
        return next((code for code in (2, 130, 143) if code in codes), 1)  # a user's mistake, or stopped

    return job
