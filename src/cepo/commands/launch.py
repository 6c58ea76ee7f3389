"""`cepo train --accelerate_config NAME`: the same command in several processes, by accelerate's launcher, as in TRL."""

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError
from typing import NoReturn

from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import patch_environment
from rich.console import Console
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from ..data.yaml_files import read_yaml
from ..trainer.arguments import CommandLine, make_parser, unknown_option

# Set in launched processes, whose YAML files still hold accelerate's options.
LAUNCHED = "CEPO_LAUNCHED"


def is_launched() -> bool:
    """Whether a launcher has started this process."""
    return bool({"WORLD_SIZE", LAUNCHED} & os.environ.keys())


def accelerate_options(line: CommandLine, command: list[str]) -> Namespace:
    """Parse the options that `cepo train` does not have as those of `accelerate launch`.

    Args:
        line: A command line of `cepo train`.
        command: Arguments of `cepo` in the launched processes.

    Raises:
        ValueError: For an option of neither, or without ``accelerate_config``.
    """
    given = [part for word in (*line.more_config, *line.more_flags) for part in word.split("=", word.startswith("--"))]
    parser = launch_command_parser()
    known = {"--accelerate_config", *parser._option_string_actions}
    flags = [word for word in given if word.startswith("--")]
    unknown = [flag for flag in flags if flag not in known] if flags else given
    if unknown:
        raise ValueError(unknown_option(unknown, make_parser()))
    if "--accelerate_config" not in flags:
        raise ValueError(f"{', '.join(flags)}: options of accelerate need --accelerate_config")

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"accelerate's options: {message}")

    parser.error = refuse
    found = parser.parse_args([*resolve_accelerate_config_argument(given), "-m", "cepo.cli", *command])
    if found.training_script != "cepo.cli":
        raise ValueError(unknown_option([found.training_script], make_parser()))
    read_yaml(Path(found.config_file), "--accelerate_config")  # accelerate fails on a file that holds no mapping
    return found


def prepare_launch(line: CommandLine, arguments: list[str]) -> Callable[[Console], int]:
    """The job that launches the processes and waits for them; accelerate and torchrun handle signals."""
    launcher, training = list(line.more_flags), []
    for word in arguments:  # accelerate's options are an ordered subsequence of them
        if launcher and word == launcher[0]:
            launcher.pop(0)
        else:
            training.append(word)
    found = accelerate_options(line, ["train", *training])

    def job(console: Console) -> int:  # noqa: ARG001
        try:
            with patch_environment(**{LAUNCHED: "1"}):
                launch_command(found)
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
        except CalledProcessError as error:  # of a single process
            codes = {error.returncode}
        else:
            return 0
        return next((code for code in (2, 130, 143) if code in codes), 1)

    return job
