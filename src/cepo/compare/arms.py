"""The arms of a comparison, from flags and a YAML file, and their validation."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..data.checks import check_dataset, check_method
from ..methods.registry import all_options, applicable_options, find_method, preset_options
from ..trainer.arguments import check_sources, make_parser, parse, unknown_option
from ..trainer.cepo_config import CEPOConfig
from .statistics import BASE, REFERENCE

# Defaults of a comparison, below the user's options.
_DEFAULTS: dict[str, Any] = {"accuracy_every": 7, "eval_problems": 400, "save_strategy": "no", "log_completions": False}
_SEEDS = 3
# Other names in the output directory, and the row of the untrained policy.
_RESERVED = (BASE, "tuning", "lock", "compare.json", "compare.md", "compare.png", "", "..")
# Options that must agree for an equal budget and equal evaluation.
_BUDGET = (
    *("model_name_or_path", "dataset_name", "dataset_config", "dataset_train_split", "figures_problems"),
    *("max_steps", "num_train_epochs", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("steps_per_generation", "num_iterations", "max_completion_length", "temperature", "top_p", "top_k"),
    *("dataset_test_split", "eval_problems", "eval_samples", "eval_sampled_problems", "accuracy_every"),
)
_REFUSED = {
    "seed": "set for each run; use first_seed and seeds",
    "output_dir": "set for each run; use --output_dir of cepo compare",
    "dry_run": "an option of cepo compare",
}
CONFIG_KEYS = {"base", "arms", "seeds", "first_seed", "against"}


@dataclass(frozen=True)
class Arm:
    """A training configuration.

    Attributes:
        name: Name of the arm and of its folder.
        options: Options of `cepo train`.
        seeds: Number of seeds.
        unread: Options of the base that the arm's method does not have; they are left out of `options`.
    """

    name: str
    options: dict[str, Any]
    seeds: int
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A validated comparison.

    Attributes:
        base: Options of all arms.
        arms: The arms.
        first_seed: The first seed of each arm.
        against: Further reference arms beside `REFERENCE`.
        differences: The values of each option that differs between arms, by arm.
        notes: Remarks for the report.
    """

    base: dict[str, Any]
    arms: list[Arm]
    first_seed: int
    against: list[str]
    differences: dict[str, dict[str, Any]]
    notes: list[str]


def read_comparison(
    config: Mapping[str, Any],
    flags: list[str],
    *,
    methods: str | None = None,
    seeds: int | None = None,
    first_seed: int | None = None,
    against: str | None = None,
) -> Comparison:
    """Read and validate a comparison.

    Args:
        config: Content of the YAML file, with `CONFIG_KEYS`.
        flags: Flags of `cepo train` for all arms; they override the file, as do the other arguments.
        methods: Comma-separated methods, an arm each.
        seeds: Number of seeds of each arm.
        first_seed: The first seed.
        against: Comma-separated further reference arms.
    """
    if unknown := sorted(map(str, set(config) - CONFIG_KEYS)):
        raise ValueError(f"--config: unknown {', '.join(unknown)}; the keys are {', '.join(sorted(CONFIG_KEYS))}")
    shared, named = config.get("base") or {}, config.get("arms") or {}
    if not isinstance(shared, dict) or not isinstance(named, dict):
        raise ValueError("--config: `base` must hold options, and `arms` names with options below each")
    base = {**_DEFAULTS, **_with_preset({**shared, **_parse_flags(flags)})}
    first = config.get("first_seed", 0) if first_seed is None else first_seed
    if not isinstance(first, int):
        raise ValueError(f"--config: first_seed must be a number, not {first!r}")
    arms = _arms(base, named, methods, seeds, config.get("seeds", _SEEDS))
    names = [arm.name for arm in arms]
    references = (config.get("against") or []) if against is None else [part.strip() for part in against.split(",")]
    if not isinstance(references, list) or set(references) - set(names):
        raise ValueError(f"against must be a list of arms, {', '.join(names)}, not {references!r}")
    references = [name for name in dict.fromkeys(references) if name != REFERENCE]
    return Comparison(base, arms, first, references, *_check(arms))


def _arms(
    base: dict[str, Any], named: Mapping[str, Any], methods: str | None, seeds: int | None, default_seeds: Any
) -> list[Arm]:
    all_named = {str(name): own or {} for name, own in named.items()}
    for name, own in all_named.items():
        if isinstance(own, dict) and isinstance(own.get("method"), str):
            with _named(name):
                find_method(own["method"])  # so that the options of every imported method are known
    for method in [part.strip() for part in methods.split(",")] if methods else []:
        if method != BASE:  # every report has a row of the untrained policy
            all_named.setdefault(find_method(method).name, {"method": method})
    if not all_named:
        raise ValueError("no arms; give --methods grpo,cepo, or a --config with `arms`")
    arms = []
    for name, own in all_named.items():
        if name in _RESERVED or Path(name).name != name or not name.isprintable():
            raise ValueError(f"arm {name!r}: choose another name; it is reserved, or not the name of a folder")
        if not isinstance(own, dict):
            raise ValueError(f"arm {name} must hold options as `name: value` lines, not {own!r}")
        count = seeds or own.get("seeds", default_seeds)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"arm {name}: seeds must be a number from 1 on, not {count!r}")
        with _named(name):
            options = _with_preset({key: value for key, value in own.items() if key != "seeds"})
            for key, reason in _REFUSED.items():
                if key in {**base, **options}:
                    raise ValueError(f"{key} is {reason}")
            # The method need not have all options of the base, but must have all options of the arm.
            read = applicable_options(base, options.get("method", base.get("method", CEPOConfig.method)))
            arms.append(Arm(name, {**read, **options}, count, tuple(option for option in base if option not in read)))
    return arms


def _with_preset(options: dict[str, Any]) -> dict[str, Any]:
    """A preset's values in place of its name, so that an arm's preset overrides the options of the base."""
    rest = dict(options)
    name = rest.pop("preset", None)
    return rest if name is None else {**preset_options(name), **rest}


def _parse_flags(flags: list[str]) -> dict[str, Any]:
    """The options of `cepo train` that were given as flags."""
    parser = make_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given, unknown = parser.parse_known_args(flags)
    if unknown:
        raise ValueError(unknown_option(unknown, parser))
    return vars(given)


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options as arguments of `cepo train`."""
    words = []
    for name, value in options.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, (bool, dict)) else value}")
    return words


def _check(arms: Sequence[Arm]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Parse every arm's options and check its data. Returns differences and notes."""
    parsed, checked = {}, []
    for arm in arms:
        with _named(arm.name):
            parsed[arm.name] = parse(command_line({**arm.options, "output_dir": "unused"}))
    for name, (script_args, training_args, model_args) in parsed.items():
        method = training_args.method_spec
        source = (script_args, model_args, method.needs_solution, type(training_args.method_options).dataset_problem)
        if source in checked:
            continue
        checked.append(source)
        with _named(name):
            sources = check_sources(script_args, training_args, model_args)
            if sources.held_out is None:
                raise ValueError(
                    f"no held-out problems (eval_problems={script_args.eval_problems}, "
                    f"dataset_test_split={script_args.dataset_test_split!r} of {script_args.dataset_name}); use a "
                    "folder or a dataset of the Hub with that split, and at least one problem"
                )
            if method.needs_solution:
                check_dataset(sources.train_dataset, needs_solution=True, extractor=training_args.answer_extractor)
            check_method(sources.train_dataset, training_args.method_options)
    differences = _differences(parsed)
    notes = [
        f"The budgets are not equal: {option} differs ({grouped(differences[option])})."
        for option in _BUDGET
        if option in differences
    ]
    unread = {option: [arm.name for arm in arms if option in arm.unread] for arm in arms for option in arm.unread}
    if unread:
        listed = "; ".join(f"{option}: {', '.join(names)}" for option, names in unread.items())
        notes.append(f"Options of all arms are left out where the arm's method does not have them ({listed}).")
    if REFERENCE not in parsed:
        notes.append(f"Without an arm {REFERENCE!r} there are no differences to it.")
    return differences, notes


def _differences(parsed: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    options, values = all_options(), dict[str, dict[str, Any]]()
    for name, arguments in parsed.items():
        for part in arguments:
            for option in fields(part):
                value = getattr(part, option.name)
                if value is not None or option.name not in options:  # None: the method does not have it
                    values.setdefault(option.name, {})[name] = value
        values["skip_zero_advantage"][name] = arguments[1].skips
    return {option: found for option, found in values.items() if len(set(map(repr, found.values()))) > 1}


def grouped(values: Mapping[str, Any]) -> str:
    """An option's values, each with its arms."""
    arms: dict[str, list[str]] = {}
    for name, value in values.items():
        arms.setdefault(repr(value), []).append(name)
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in arms.items())


@contextmanager
def _named(arm: str) -> Iterator[None]:
    """Prefix an error with the arm."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"arm {arm}: {error}") from error
