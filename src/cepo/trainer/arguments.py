"""From flags and YAML to the arguments of a run, and to what they name: model, data, reward functions."""

import os
from argparse import Namespace
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
from ..methods.options import preset_options, presets, readable
from ..tasks.figures import NAME as FIGURES
from .cepo_config import CEPOConfig
from .checkpoints import find_checkpoint


@dataclass
class TrainArguments(DatasetOptions, ScriptArguments):
    """TRL's script arguments, the reward functions, and how accuracy is measured."""

    _argument_group_name = "data, rewards and accuracy"  # for the help page of transformers' parser

    dataset_name: str = field(
        default=FIGURES,
        metadata={"help": "figures (embedded), a JSON, CSV or parquet file, a folder, or a name on the Hub."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["answer_reward"],
        metadata={
            "help": "answer_reward, names in trl.rewards, or import paths (module.function). The first one decides "
            "which rollouts are correct."
        },
    )
    eval_problems: int = field(
        default=400,
        metadata={
            "help": "Held-out problems that are answered greedily before and after training; 0: measure nothing."
        },
    )
    eval_samples: int = field(
        default=8,
        metadata={"help": "Sampled answers to a held-out problem, before and after, for accuracy, pass@k and entropy."},
    )
    eval_sampled_problems: int = field(default=100, metadata={"help": "How many of the held-out problems get these."})
    eval_batch_size: int = field(default=200, metadata={"help": "Held-out answers sampled at a time, for accuracy."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": f"Values to start from, a paper's: {', '.join(presets())}; what another method does not read is "
            "left out."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Leave out training prompts of more tokens, images included, and say how many. None: none."},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Train nothing: say what the run would do and hold in memory, and what is wrong with it."},
    )
    device_memory: float | None = field(
        default=None, metadata={"help": "Of one device [GiB]; a dry run says whether what a process holds fits."}
    )
    accuracy_every: int = field(
        default=0, metadata={"help": "Measure greedy accuracy every so many steps too; 0: before and after only."}
    )
    figures_problems: int = field(default=2000, metadata={"help": "Training problems to make, for the figures task."})

    def __post_init__(self):
        counts = {
            0: ("eval_problems", "eval_samples", "accuracy_every"),
            1: ("eval_sampled_problems", "eval_batch_size", "figures_problems"),
        }
        for least, names in counts.items():
            for name in names:
                if getattr(self, name) < least:
                    raise ValueError(f"{name} must be {least} or more, not {getattr(self, name)}")


class _Parser(TrlParser):
    """TRL's parser, whose errors are one line rather than a list of three hundred options."""

    def error(self, message: str):
        raise ValueError(message)


def make_parser(processes: int | None = None) -> TrlParser:
    """The parser of `cepo train`; with `processes`, one whose `CEPOConfig` checks batches for so many."""
    config: type = CEPOConfig
    if processes is not None:
        config = type("CEPOConfig", (CEPOConfig,), {"world_size": property(lambda _: processes)})
    return _Parser((TrainArguments, config, ModelConfig), prog="cepo train", allow_abbrev=False)


@dataclass(frozen=True)
class CommandLine:
    """The arguments of `cepo train`, read once.

    Attributes:
        flags: Arguments without ``--config`` and its files.
        config: Options of these files.
        options: All options of `cepo train` as flags and files have them; `method`, `use_cpu` and `bf16` are None
            where neither has them.
        more_flags, more_config: Flags with their values that are no options of `cepo train`, of the command line and
            of the files: accelerate's, or mistakes.
    """

    flags: list[str]
    config: dict[str, Any]
    options: Namespace
    more_flags: list[str]
    more_config: list[str]


def read_command_line(arguments: list[str]) -> CommandLine:
    """Split the arguments of `cepo train`; nothing is checked but the values of single options.

    Raises:
        ValueError: For a file of options that cannot be read, or a value of another type than its option's.
    """
    parser = make_parser()
    flags, config = config_of(arguments)
    parser.set_defaults(method=None, use_cpu=None, bf16=None)
    known = {name: value for name, value in config.items() if name != "env"}
    try:
        more_config = parser.set_defaults_with_config(**known)
        options, more_flags = parser.parse_known_args(flags)
    except TypeError as error:  # a value in the YAML file of a type that the option cannot take
        raise ValueError(f"in the options: {error}") from error
    return CommandLine(flags, config, options, more_flags, more_config)


def parse(
    arguments: list[str] | CommandLine,
    *,
    launched: bool = False,
    processes: int | None = None,
    fallback: Mapping[str, Any] | None = None,
) -> tuple[TrainArguments, CEPOConfig, ModelConfig]:
    """Options from flags, over those of ``--config``, over the recipe of the embedded task where that is trained.

    Args:
        arguments: Of the command line.
        launched: Whether options of the files that are not of `cepo train` were accelerate's.
        processes: Number of processes for which batches are checked; None: those of this run.
        fallback: Values for options that nothing else names.

    Raises:
        ValueError, OSError: With a message for the user.
    """
    line = arguments if isinstance(arguments, CommandLine) else read_command_line(arguments)
    parser = make_parser(processes)
    if line.more_flags or (line.more_config and not launched):
        raise ValueError(unknown_option([*line.more_config, *line.more_flags], parser))
    given = dict(line.config)
    for name, value in (given.pop("env", None) or {}).items():  # as TRL's parser does
        os.environ[name] = str(value)
    preset, chosen = line.options.preset, line.options.method
    beginning = {} if preset is None else preset_options(preset, chosen)
    if line.options.dataset_name in EMBEDDED:
        task = EMBEDDED[line.options.dataset_name]
        # What the method does not read would be refused.
        recipe = readable(task.recipe(), chosen or beginning.get("method") or CEPOConfig.method)
        beginning = {"model_name_or_path": task.policy(), **recipe, **beginning}
    try:
        parser.set_defaults_with_config(**{**(fallback or {}), **beginning, **given})
        found = parser.parse_args_into_dataclasses(args=line.flags, return_remaining_strings=True)
    except TypeError as error:
        raise ValueError(f"in the options: {error}") from error
    script_args, training_args, model_args = found[:3]
    if not model_args.model_name_or_path:
        known = ", ".join(f"{name}, the shipped policy" for name in EMBEDDED)
        raise ValueError(f"which model? Give --model_name_or_path a folder, a name on the Hub, or {known}.")
    model_args.model_name_or_path = policy_of(model_args.model_name_or_path)
    if isinstance(script_args.reward_funcs, str):  # one name in a YAML file
        script_args.reward_funcs = [script_args.reward_funcs]
    if not script_args.reward_funcs:
        raise ValueError("reward_funcs: at least one is needed, to tell right from wrong")
    if model_args.use_peft and model_args.lora_target_modules is None:
        # PEFT knows no default for the newer architectures; this serves all of them.
        model_args.lora_target_modules = "all-linear"
    training_args.resume_from_checkpoint = find_checkpoint(
        training_args.resume_from_checkpoint, training_args.output_dir
    )
    return script_args, training_args, model_args


def config_of(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without ``--config``, and what its files say: of several, later ones win.

    Raises:
        ValueError: If a file is not there, or does not hold options.
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
            raise ValueError("--config: which file?")
        given |= read_yaml(Path(path))
    return left, given


def unknown_option(unknown: list[str], parser: TrlParser) -> str:
    """What to say of arguments that no option is named like."""

    option = next((text for text in unknown if text.startswith("--")), "").partition("=")[0]
    if not option:
        return f"what is {unknown[0]!r}? An option takes one value; several stand in a file (--config), as [one, two]"
    known = [flag for action in parser._actions for flag in action.option_strings]
    close = get_close_matches(option, known, n=1)
    return f"unknown option {option}" + (f"; did you mean {close[0]}?" if close else "")


@dataclass(frozen=True)
class Sources:
    """What the options of a run name.

    Attributes:
        model_name: Folder or Hub name.
        reward_funcs: The reward functions.
        train_dataset: In TRL's columns.
        held_out: The held-out problems; None: there are none.
        notes: What people should be told of the data.
    """

    model_name: str
    reward_funcs: list[Any]
    train_dataset: Any
    held_out: Any
    notes: list[str]


def check_sources(script_args: TrainArguments, training_args: CEPOConfig, model_args: ModelConfig) -> Sources:
    """Model, reward functions and data of a run, from their names.

    Raises:
        ValueError, OSError: If one of them is not there or not as it should be.
    """
    model_name = resolve_model(model_args.model_name_or_path)
    notes: list[str] = []
    train_dataset = load_data(script_args, script_args.dataset_train_split, script_args.figures_problems, notes)
    held_out = _held_out_problems(script_args, notes)
    reward_funcs = load_reward_funcs(script_args.reward_funcs)
    # The verifiers compare with the solution, whatever the method. Where teachers need it, the trainer checks the
    # training set itself, and a second pass over every row would find nothing new.
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
    """The held-out problems, or None where there are none to be had."""
    if script_args.eval_problems <= 0:
        return None
    wanted = script_args.eval_problems
    try:
        data = load_data(script_args, script_args.dataset_test_split, wanted, notes)
    except LoadingError:
        return None
    if Path(script_args.dataset_name).is_file():  # one file has one split: the training set holds nothing out
        return None
    return data.select(range(min(wanted, len(data)))) if len(data) else None


def load_data(script_args: TrainArguments, split: str, size: int, notes: list[str]) -> Any:
    """A split of the run's data, in TRL's columns; figures: so many problems.

    Raises:
        ValueError: If it is not there, or not as the options say.
    """
    return load_split(
        script_args.dataset_name,
        split,
        config=script_args.dataset_config,
        size=size,
        streaming=script_args.dataset_streaming,
        options=script_args,
        notes=notes,
    )
