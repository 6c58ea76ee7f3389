"""The arms of a comparison, from flags and a YAML file, and their validation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..data.checks import check_dataset, check_method
from ..data.yaml_files import read_yaml
from ..methods.registry import all_options, applicable_options, find_method, preset_options
from ..trainer.arguments import check_sources, parse
from ..trainer.cepo_config import CEPOConfig
from .jobs import command_line
from .statistics import BASE, REFERENCE

# Options of every arm unless the user sets them.
_DEFAULTS: dict[str, Any] = {"accuracy_every": 7, "eval_problems": 400, "save_strategy": "no", "log_completions": False}
_SEEDS = 3
# Names in the output directory beside the arms, and of the untrained policy's row.
_RESERVED = (BASE, "tempered", "tuning", "lock", "compare.json", "compare.md", "compare.png", "", "..")
# Options that arms should share: their budget, and the problems on which they are judged.
_BUDGET = (
    *("model_name_or_path", "dataset_name", "dataset_config", "dataset_train_split", "figures_problems"),
    *("max_steps", "num_train_epochs", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("steps_per_generation", "num_iterations", "max_completion_length", "temperature", "top_p", "top_k"),
    *("dataset_test_split", "eval_problems", "eval_samples", "eval_sampled_problems", "accuracy_every"),
)
# Options of `cepo train` that arms cannot have.
_REFUSED = {
    "seed": "chosen for each run; leave it out",
    "output_dir": "chosen for each run; leave it out",
    "dry_run": "for all arms at once; give cepo compare --dry_run",
}
CONFIG_KEYS = {"base", "arms", "seeds", "first_seed", "against"}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Its name, and its folder's.
        options: Of `cepo train`.
        seeds: How many.
        unread: Options of all arms that its method does not read; they are left out of `options`.
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
        first_seed: The first seed.
        against: Arms with which the others are compared, beside GRPO.
        differences: For each option in which arms differ, its value in each arm.
        notes: For the reader of the results.
    """

    base: dict[str, Any]
    arms: list[Arm]
    first_seed: int
    against: list[str]
    differences: dict[str, dict[str, Any]]
    notes: list[str]


def read_config(path: Path | None) -> dict[str, Any]:
    """The YAML file of a comparison.

    Raises:
        ValueError: If it is missing or not a mapping.
    """
    return {} if path is None else read_yaml(path)


def read_comparison(
    config: Mapping[str, Any],
    rest: list[str],
    *,
    methods: str | None = None,
    seeds: int | None = None,
    first_seed: int | None = None,
    against: str | None = None,
) -> Comparison:
    """Read and validate a comparison; flags override the file. A mistake that a run would find later is refused now.

    Args:
        config: Of `read_config`.
        rest: Flags of `cepo train`, for all arms.
        methods: Arms by method, with commas between.
        seeds: Seeds of each arm.
        first_seed: The first of them.
        against: Arms with which the others are compared, with commas between.

    Raises:
        ValueError: Naming the arm or the key.
    """
    if set(config) - CONFIG_KEYS:
        unknown = ", ".join(sorted(map(str, set(config) - CONFIG_KEYS)))
        raise ValueError(f"--config: unknown {unknown}; it takes {', '.join(sorted(CONFIG_KEYS))}, and nothing else")
    given, named = config.get("base") or {}, config.get("arms") or {}
    if not isinstance(given, dict) or not isinstance(named, dict):
        raise ValueError("--config: `base` must hold options, and `arms` names with options below each")
    base = {**_DEFAULTS, **_with_preset({**given, **_flags(rest)})}
    first = config.get("first_seed", 0) if first_seed is None else first_seed
    if not isinstance(first, int):
        raise ValueError(f"--config: first_seed must be a number, not {first!r}")
    arms = _arms(base, named, methods, seeds, config.get("seeds", _SEEDS))
    names = [arm.name for arm in arms]
    beside = (config.get("against") or []) if against is None else [part.strip() for part in against.split(",")]
    if not isinstance(beside, list) or set(beside) - set(names):
        raise ValueError(f"against must be a list of arms, {', '.join(names)}, not {beside!r}")
    beside = [name for name in dict.fromkeys(beside) if name != REFERENCE]
    return Comparison(base, arms, first, beside, *_check(arms))


def _arms(
    base: dict[str, Any], named: Mapping[str, Any], methods: str | None, seeds: int | None, default_seeds: Any
) -> list[Arm]:
    all_named = {str(name): own or {} for name, own in named.items()}
    for name, own in all_named.items():
        if isinstance(own, dict) and isinstance(own.get("method"), str):
            with _named(name):
                find_method(own["method"])  # so that the options of every imported method are known
    for method in [part.strip() for part in methods.split(",")] if methods else []:
        if method != BASE:  # the untrained policy has a row in every comparison
            all_named.setdefault(find_method(method).name, {"method": method})
    if not all_named:
        raise ValueError("which arms? Give --methods grpo,cepo or a --config with `arms`")
    arms = []
    for name, own in all_named.items():
        if name in _RESERVED or Path(name).name != name or not name.isprintable():
            raise ValueError(f"arm {name!r}: choose another name; it must be a folder's and not reserved")
        if not isinstance(own, dict):
            raise ValueError(f"arm {name} must hold options as `name: value` lines, not {own!r}")
        count = seeds or own.get("seeds", default_seeds)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"arm {name}: seeds must be a number from 1 on, not {count!r}")
        with _named(name):
            options = _with_preset({key: value for key, value in own.items() if key != "seeds"})
            for key, why in _REFUSED.items():
                if key in {**base, **options}:
                    raise ValueError(f"{key} is {why}")
            # Options of all arms reach the arms whose method reads them; an arm's own option must be read.
            read = applicable_options(base, options.get("method", base.get("method", CEPOConfig.method)))
            arms.append(Arm(name, {**read, **options}, count, tuple(option for option in base if option not in read)))
    return arms


def _with_preset(options: dict[str, Any]) -> dict[str, Any]:
    """A preset replaced by its values, so that an arm's preset overrides the base's options."""
    rest = dict(options)
    name = rest.pop("preset", None)
    return rest if name is None else {**preset_options(name), **rest}


def _flags(rest: list[str]) -> dict[str, Any]:
    """`--name value`, `--name=value`, `--name value value` and `--name` as a dictionary."""
    found: dict[str, Any] = {}
    name: str | None = None
    for word in [part for flag in rest for part in (flag.split("=", 1) if flag.startswith("--") else [flag])]:
        if word.startswith("--"):
            name = word[2:]
            found[name] = True
        elif name is None:
            raise ValueError(f"unexpected {word!r}; options of cepo train take the form --name value")
        elif found[name] is True:
            found[name] = word
        else:
            found[name] = [*(found[name] if isinstance(found[name], list) else [found[name]]), word]
    return found


def _check(arms: Sequence[Arm]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Parse every arm's options and check its data. Returns differences and notes."""
    parsed, seen = {}, []
    for arm in arms:
        with _named(arm.name):
            parsed[arm.name] = parse(command_line({**arm.options, "output_dir": "unused"}))
    for name, (script_args, training_args, model_args) in parsed.items():
        method = training_args.method_spec
        source = (script_args, model_args, method.needs_solution, type(training_args.method_options).dataset_problem)
        if source in seen:
            continue
        seen.append(source)
        with _named(name):
            sources = check_sources(script_args, training_args, model_args)
            if sources.held_out is None:
                raise ValueError(
                    f"no held-out problems to compare on (eval_problems={script_args.eval_problems}, "
                    f"dataset_test_split={script_args.dataset_test_split!r} of {script_args.dataset_name}); give a "
                    "folder or a dataset on the Hub with that split, and at least one problem"
                )
            if method.needs_solution:
                check_dataset(sources.train_dataset, needs_solution=True, extractor=training_args.answer_extractor)
            check_method(sources.train_dataset, training_args.method_options)
    differences = _differences(parsed)
    notes = [
        f"Arms differ in {option} ({grouped(differences[option])}): their budgets are not equal."
        for option in _BUDGET
        if option in differences
    ]
    left_out = {option: [arm.name for arm in arms if option in arm.unread] for arm in arms for option in arm.unread}
    if left_out:
        listed = "; ".join(f"{option}: {', '.join(names)}" for option, names in left_out.items())
        notes.append(f"Options of all arms that an arm's method does not read are left out of it ({listed}).")
    if REFERENCE not in parsed:
        notes.append(f"There is no arm {REFERENCE!r}, so no differences to it are given.")
    return differences, notes


def _differences(parsed: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    options, values = all_options(), dict[str, dict[str, Any]]()
    for name, arguments in parsed.items():
        for part in arguments:
            for option in fields(part):
                value = getattr(part, option.name)
                if value is not None or option.name not in options:  # None: the method does not have it
                    values.setdefault(option.name, {})[name] = value
        _, training_args, _ = arguments
        values["skip_zero_advantage"][name] = training_args.skips
    return {option: found for option, found in values.items() if len(set(map(repr, found.values()))) > 1}


def grouped(values: Mapping[str, Any]) -> str:
    """An option's values, each with its arms."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(repr(value), []).append(name)
    return "; ".join(f"{value}: {', '.join(having)}" for value, having in names.items())


@contextmanager
def _named(arm: str) -> Iterator[None]:
    """Name the arm in an error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"arm {arm}: {error}") from error
