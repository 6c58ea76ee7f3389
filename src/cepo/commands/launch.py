"""`cepo train --accelerate_config NAME`: the same command on several processes, by `accelerate launch`."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from rich.console import Console
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from ..data.yaml_files import read_yaml

FLAG = "--accelerate_config"
# In the environment of processes that were started here: their YAML file still says how to start them.
_LAUNCHED = "CEPO_LAUNCHED"


def split(arguments: list[str], own: set[str]) -> tuple[list[str], list[str]]:
    """Arguments of `accelerate launch`, `--accelerate_config` among them, and those of the command.

    Args:
        arguments: Of the command line.
        own: Flags that the command itself has, which are never accelerate's.
    """
    values = _flags(own)
    launch, rest = [], []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, _ = argument.partition("=")
        if flag not in values:
            rest.append(argument)
            continue
        launch.append(argument)
        if values[flag] and not equals and left:
            launch.append(left.pop(0))
    return launch, rest


def _flags(own: set[str]) -> dict[str, int]:
    """How many values each of accelerate's flags takes, with `--accelerate_config`, without the command's own."""
    values = {FLAG: 1}
    for action in launch_command_parser()._actions:
        for flag in action.option_strings:
            if flag.startswith("--") and flag not in own:
                values[flag] = 0 if action.nargs == 0 else 1
    return values


def options_in(config: Mapping[str, Any], own: set[str]) -> dict[str, Any]:
    """Those of a YAML file's options that are accelerate's."""
    flags = _flags(own) if config else {}
    return {name: value for name, value in config.items() if f"--{name}" in flags}


def accelerate_config(path: str | None) -> Any:
    """What a configuration of accelerate's says.

    Raises:
        ValueError: If it is no such file.
    """
    if path is not None:
        content = read_yaml(Path(path), FLAG)
        if not isinstance(content, dict):
            raise ValueError(f"{FLAG}: {path} must hold `name: value` lines, as `accelerate config` writes them")
    try:
        return load_config_from_file(path)
    except (KeyError, TypeError, AttributeError) as error:  # values of other types than accelerate's
        raise ValueError(f"{FLAG}: {path} is no configuration of accelerate's: {error}") from error


def is_launched() -> bool:
    """Whether this process was started by a launcher already."""
    return "WORLD_SIZE" in os.environ or _LAUNCHED in os.environ


def prepare_launch(
    command: str, arguments: list[str], own: set[str], config: Mapping[str, Any] | None = None
) -> Callable[[Console], int]:
    """What starts the processes and waits for them.

    Args:
        command: Of `cepo`.
        arguments: Of it.
        own: Flags that the command has.
        config: Accelerate's options of its YAML files, `accelerate_config` among these or the arguments; flags win.

    Raises:
        ValueError: If there is no such configuration.
    """
    launch, rest = split(arguments, own)
    given, values = {argument.partition("=")[0] for argument in launch}, _flags(own)
    for name, value in (config or {}).items():
        flag = f"--{name}"
        if flag not in given and value is not False:
            launch += [flag] if value is True and not values[flag] else [flag, str(value)]
    try:
        launch = resolve_accelerate_config_argument([part for one in launch for part in _apart(one)])
    except ValueError as error:
        names = "single_gpu, multi_gpu, fsdp1, fsdp2, zero1, zero2, zero3"
        raise ValueError(f"{FLAG}: {error} Its names: {names}.") from error
    parsed: Any = launch_command_parser().parse_args([*launch, "-m", "cepo.cli", command, *rest])
    config_file = accelerate_config(parsed.config_file)
    processes = parsed.num_processes or config_file.num_processes

    def run(console: Console) -> int:  # noqa: ARG001
        os.environ[_LAUNCHED] = "1"
        try:
            if config_file.distributed_type == DistributedType.MULTI_CPU and processes > 1:
                # accelerate starts one process there, unless MPI is installed.
                os.environ["ACCELERATE_USE_CPU"] = "true"
                threads = max(1, (os.cpu_count() or 1) // processes)
                os.environ.setdefault("OMP_NUM_THREADS", str(threads))
                torchrun(["--standalone", f"--nproc_per_node={processes}", "-m", "cepo.cli", command, *rest])
            else:
                launch_command(parsed)
        except ChildFailedError as error:
            return _failed([failure.exitcode for failure in error.failures.values()])
        except CalledProcessError as error:
            return _failed([error.returncode])
        finally:
            os.environ.pop(_LAUNCHED, None)
        return 0

    return run


def _failed(codes: list[int]) -> int:
    """Exit status: that of a user's mistake if a process said so, else that of a failure."""
    return next((code for code in (2, 130) if code in codes), 1)


def _apart(argument: str) -> list[str]:
    """`--flag=value` as two."""
    flag, equals, value = argument.partition("=")
    return [flag, value] if equals and flag == FLAG else [argument]
