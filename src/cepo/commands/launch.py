"""`cepo train --accelerate_config NAME`: the same command on several processes, by `accelerate launch`."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import psutil
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
# Where torchrun finds the signals that are its own.
_TORCHRUN_SIGNALS = "PET_SIGNALS_TO_HANDLE"


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
        with _signals_passed_on() as received:
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
                return _failed([failure.exitcode for failure in error.failures.values()], received)
            except CalledProcessError as error:
                return _failed([error.returncode], received)
            except KeyboardInterrupt:  # the third signal
                return 128 + received[0]
            finally:
                os.environ.pop(_LAUNCHED, None)
        return 0

    return run


@contextmanager
def _signals_passed_on() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM go on to the processes, which finish their step and save it, however long that takes.

    torchrun would kill them after half a minute; other launchers leave them alone behind. Two signals are passed on;
    the third ends the launcher, and whatever still hangs.

    Yields:
        The signals that came.
    """
    received: list[int] = []

    def pass_on(signum: int, frame: Any) -> None:  # noqa: ARG001
        received.append(signum)
        for child in psutil.Process().children():
            with suppress(ProcessLookupError):
                # A terminal sends Ctrl-C to all of its processes itself; torchrun's are in sessions of their own.
                if signum == signal.SIGTERM or os.getpgid(child.pid) != os.getpgrp():
                    os.kill(child.pid, signum)
        if len(received) > 2:
            raise KeyboardInterrupt

    ours = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, pass_on) for number in ours}
    known = os.environ.get(_TORCHRUN_SIGNALS)
    theirs = (known or "SIGTERM,SIGINT,SIGHUP,SIGQUIT").split(",")
    os.environ[_TORCHRUN_SIGNALS] = ",".join(name for name in theirs if name not in {one.name for one in ours})
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.environ.pop(_TORCHRUN_SIGNALS)
        if known is not None:
            os.environ[_TORCHRUN_SIGNALS] = known
        if len(received) > 2:
            for child in psutil.Process().children():
                child.kill()


def _failed(codes: list[int], received: list[int]) -> int:
    """Exit status: that of a signal that was passed on, of a user's mistake if a process said so, else of a failure.

    Args:
        codes: Exit codes of processes that failed; below 0, the signal that ended them.
        received: The signals that were passed on.
    """
    stopped = [128 + number for number in received[:1]]
    ends = [128 - code if code < 0 else code for code in codes]
    return next((code for code in (*stopped, 2, 130, 143) if code in ends), 1)


def _apart(argument: str) -> list[str]:
    """`--flag=value` as two."""
    flag, equals, value = argument.partition("=")
    return [flag, value] if equals and flag == FLAG else [argument]
