"""The arguments of `cepo train` from flags and YAML; loading of the data and reward functions that they name."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trl import ModelConfig, ScriptArguments, TrlParser

from ..data.checks import check_dataset, check_image_sizes
from ..data.embedded import EMBEDDED, policy_of
from ..data.errors import LoadingError
from ..data.formats import DatasetOptions
from ..data.lengths import prompt_length, without_long_prompts
from ..data.loading import load_split
from ..data.models import load_processor, resolve_model
from ..data.rewards import load_reward_funcs, need_solutions
from ..data.yaml_files import read_yaml
from ..methods.registry import applicable_options, preset_options, presets
from ..tasks.figures import NAME as FIGURES
from .cepo_config import CEPOConfig, config_class
from .checkpoints import find_checkpoint


@dataclass
class TrainArguments(DatasetOptions, ScriptArguments):
    """TRL's script arguments, the reward functions, and the measurement of accuracy."""

    _argument_group_name = "data, rewards and accuracy"  # for the help page of transformers' parser

    dataset_name: str = field(
        default=FIGURES,
        metadata={"help": "figures (embedded), a JSON, CSV or parquet file, a folder, or a name on the Hub."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["answer_reward"],
        metadata={
            "help": "answer_reward, names in trl.rewards, or import paths (module.function). The first one decides "
            "which rollouts are correct, unless correctness_reward names another."
        },
    )
    eval_problems: int = field(
        default=400,
        metadata={"help": "Held-out problems for greedy accuracy before and after training; 0: no measurement."},
    )
    eval_samples: int = field(
        default=8,
        metadata={"help": "Sampled answers for each held-out problem, for accuracy, pass@k and entropy."},
    )
    eval_sampled_problems: int = field(default=100, metadata={"help": "Held-out problems with sampled answers."})
    eval_batch_size: int = field(default=200, metadata={"help": "Held-out answers sampled in one batch."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": f"A paper's values, which other options override: {', '.join(presets())}. With another method, "
            "options that it does not have are left out."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Leave out training prompts with more tokens, images included. None: keep all."},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Do not train; report the run's plan, its memory and problems with its options."},
    )
    device_memory: float | None = field(
        default=None, metadata={"help": "Memory of one device [GiB]; a dry run reports whether a process fits."}
    )
    accuracy_every: int = field(
        default=0, metadata={"help": "Also measure greedy accuracy every this many steps; 0: before and after only."}
    )
    figures_problems: int = field(default=2000, metadata={"help": "Number of training problems of the figures task."})

    def __post_init__(self):
        smallest = {"eval_problems": 0, "eval_samples": 0, "accuracy_every": 0}
        smallest |= dict.fromkeys(("eval_sampled_problems", "eval_batch_size", "figures_problems"), 1)
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


class _Parser(TrlParser):
    """TRL's parser with one-line errors, without the list of all options."""

    def error(self, message: str):
        raise ValueError(message)


def make_parser(method: str | None = None, *, processes: int | None = None) -> TrlParser:
    """The parser of `cepo train`.

    Args:
        method: The method, whose options are added; None: the default one.
        processes: Number of processes for which `CEPOConfig` validates batches; None: those of this run.
    """
    config: type = config_class(method or CEPOConfig.method)
    if processes is not None:
        config = type("CEPOConfig", (config,), {"world_size": property(lambda _: processes)})
    return _Parser((TrainArguments, config, ModelConfig), prog="cepo train", allow_abbrev=False)


def method_flag(flags: list[str]) -> str | None:
    """The value of `--method`, which adds its options to the parser; None without it."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--method", nargs="?")
    return parser.parse_known_args(flags)[0].method


@dataclass(frozen=True)
class CommandLine:
    """The arguments of `cepo train`.

    Attributes:
        flags: Arguments without ``--config`` and its files.
        config: Options of these files.
        options: All options of `cepo train` from flags and files; `method`, `use_cpu` and `bf16` are None where they
            are not given.
        more_flags, more_config: Flags and options of files, with their values, that `cepo train` does not have. They
            are accelerate's, or mistakes.
    """

    flags: list[str]
    config: dict[str, Any]
    options: Namespace
    more_flags: list[str]
    more_config: list[str]


def read_command_line(arguments: list[str]) -> CommandLine:
    """Split the arguments of `cepo train`, and validate the types of single options.

    Raises:
        ValueError: For a file of options that cannot be read, an unknown method, or a value of another type.
    """
    flags, config = config_of(arguments)
    parser = make_parser(_method_of(flags, config))
    parser.set_defaults(method=None, use_cpu=None, bf16=None)
    known = {name: value for name, value in config.items() if name != "env"}
    try:
        more_config = parser.set_defaults_with_config(**known)
        options, more_flags = parser.parse_known_args(flags)
    except TypeError as error:  # a value in the YAML file of a type that the option cannot take
        raise ValueError(f"in the options: {error}") from error
    return CommandLine(flags, config, options, more_flags, more_config)


def _method_of(flags: list[str], config: Mapping[str, Any]) -> str | None:
    found = method_flag(flags) or config.get("method")
    return found if isinstance(found, str) else None  # `CEPOConfig` refuses another type


def parse(
    arguments: list[str] | CommandLine,
    *,
    launched: bool = False,
    processes: int | None = None,
    fallback: Mapping[str, Any] | None = None,
) -> tuple[TrainArguments, CEPOConfig, ModelConfig]:
    """Options from flags, over those of ``--config``, over the preset, over the recipe of an embedded task.

    Args:
        arguments: The command line.
        launched: Whether accelerate has launched this process, and takes unknown options of the files.
        processes: Number of processes for which batches are validated; None: those of this run.
        fallback: Values for options that are not given otherwise.

    Raises:
        ValueError, OSError: With a message for the user.
    """
    line = arguments if isinstance(arguments, CommandLine) else read_command_line(arguments)
    parser = make_parser(_method_of(line.flags, line.config), processes=processes)
    if line.more_flags or (line.more_config and not launched):
        raise ValueError(unknown_option([*line.more_config, *line.more_flags], parser))
    given = dict(line.config)
    for name, value in (given.pop("env", None) or {}).items():  # as TRL's parser does
        os.environ[name] = str(value)
    preset, chosen = line.options.preset, line.options.method
    beginning = {} if preset is None else preset_options(preset, chosen)
    if line.options.dataset_name in EMBEDDED:
        task = EMBEDDED[line.options.dataset_name]
        recipe = applicable_options(task.recipe(), chosen or beginning.get("method") or CEPOConfig.method)
        beginning = {"model_name_or_path": task.policy(), **recipe, **beginning}
    try:
        parser.set_defaults_with_config(**{**(fallback or {}), **beginning, **given})
        found = parser.parse_args_into_dataclasses(args=line.flags, return_remaining_strings=True)
    except TypeError as error:
        raise ValueError(f"in the options: {error}") from error
    script_args, training_args, model_args = found[:3]
    if not model_args.model_name_or_path:
        raise ValueError(
            f"--model_name_or_path is missing: give a folder, a name on the Hub, or {FIGURES}, the shipped policy."
        )
    model_args.model_name_or_path = policy_of(model_args.model_name_or_path)
    if isinstance(script_args.reward_funcs, str):  # one name in a YAML file
        script_args.reward_funcs = [script_args.reward_funcs]
    if not script_args.reward_funcs:
        raise ValueError("reward_funcs: at least one is needed; the first one decides which rollouts are correct")
    if model_args.use_peft and model_args.lora_target_modules is None:
        # PEFT has no default for newer architectures.
        model_args.lora_target_modules = "all-linear"
    training_args.resume_from_checkpoint = find_checkpoint(
        training_args.resume_from_checkpoint, training_args.output_dir
    )
    return script_args, training_args, model_args


def config_of(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without ``--config``, and the options of its files; later files win.

    Raises:
        ValueError: If a file is missing or does not hold options.
    """
    left: list[str] = []
    given: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        flag, equals, path = word.partition("=")
        if flag != "--config":
            left.append(word)
            continue
        path = path if equals else next(words, "")
        if not path or path.startswith("--"):
            raise ValueError("--config: give the path of a file")
        given |= read_yaml(Path(path))
    return left, given


def unknown_option(unknown: list[str], parser: ArgumentParser) -> str:
    """The error message for arguments that are no options."""
    option = next((text for text in unknown if text.startswith("--")), "").partition("=")[0]
    if not option:
        return f"unexpected {unknown[0]!r}: an option takes one value; give a list in a file (--config) as [one, two]"
    known = [flag for action in parser._actions for flag in action.option_strings]
    close = get_close_matches(option, known, n=1)
    return f"unknown option {option}" + (f"; did you mean {close[0]}?" if close else "")


@dataclass(frozen=True)
class Sources:
    """Model, reward functions and data of a run.

    Attributes:
        model_name: Folder or Hub name.
        reward_funcs: The reward functions.
        train_dataset: The training set in TRL's columns.
        held_out: The held-out problems; None without any.
        notes: Notes on the data for the user.
    """

    model_name: str
    reward_funcs: list[Any]
    train_dataset: Any
    held_out: Any
    notes: list[str]


def check_sources(script_args: TrainArguments, training_args: CEPOConfig, model_args: ModelConfig) -> Sources:
    """Load reward functions and data of a run from their names, and validate them.

    Raises:
        ValueError, OSError: If one of them is missing or invalid.
    """
    model_name = resolve_model(model_args.model_name_or_path)
    notes: list[str] = []
    train_dataset = load_data(script_args, script_args.dataset_train_split, script_args.figures_problems, notes)
    held_out = _held_out_problems(script_args, notes)
    reward_funcs = load_reward_funcs(script_args.reward_funcs)
    # Verifiers may need solutions. If teachers need them, the trainer validates the training set.
    judged, extractor = need_solutions(reward_funcs), training_args.answer_extractor
    if not training_args.method_spec.needs_teachers:
        check_dataset(train_dataset, needs_solution=judged, extractor=extractor)
    if held_out is not None:
        check_dataset(held_out, needs_solution=judged, name="the held-out split", extractor=extractor)
    if script_args.max_prompt_length is not None:
        processor = load_processor(model_name, trust_remote_code=training_args.trust_remote_code)
        check_image_sizes(train_dataset, processor)  # before the processor counts their tokens
        length = prompt_length(processor, training_args.chat_template_kwargs or {})
        train_dataset = without_long_prompts(train_dataset, script_args.max_prompt_length, length, notes)
    return Sources(model_name, reward_funcs, train_dataset, held_out, notes)


def _held_out_problems(script_args: TrainArguments, notes: list[str]) -> Any:
    """The held-out problems; None if the dataset has no such split."""
    if script_args.eval_problems <= 0:
        return None
    wanted = script_args.eval_problems
    try:
        data = load_data(script_args, script_args.dataset_test_split, wanted, notes)
    except LoadingError:
        return None
    if Path(script_args.dataset_name).is_file():  # one file has one split, the training set
        return None
    return data.select(range(min(wanted, len(data)))) if len(data) else None


def load_data(script_args: TrainArguments, split: str, size: int, notes: list[str]) -> Any:
    """A split of the run's data in TRL's columns; for the figures task, `size` problems."""
    return load_split(
        script_args.dataset_name,
        split,
        config=script_args.dataset_config,
        size=size,
        streaming=script_args.dataset_streaming,
        options=script_args,
        notes=notes,
    )
