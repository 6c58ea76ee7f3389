"""The arms of a comparison, as flags and a YAML file name them, and whether they can run and be compared."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..data.checks import check_dataset, check_method
from ..data.yaml_files import read_yaml
from ..methods.options import SELECTIVE, preset_options, readable
from ..methods.registry import find_method
from ..tasks.figures import LEARNED_HINTS, policy_path
from ..tasks.figures import NAME as FIGURES
from ..trainer.arguments import check_sources, parse
from ..trainer.cepo_config import CEPOConfig
from .jobs import command_line
from .statistics import BASE, REFERENCE, TEMPERED, others_named
from .tuning import Tuning, parse_rates

# What every arm gets unless the user says otherwise.
_BASE: dict[str, Any] = {"accuracy_every": 7, "eval_problems": 400, "save_strategy": "no", "log_completions": False}
_SEEDS = 3
# Names of the untrained policy's row, and of what is in the folder besides arms.
_TAKEN = (BASE, TEMPERED, "tuning", "lock", "compare.json", "compare.md", "compare.png", "", "..")
# Options that should be the same for all arms: what they may spend, and on what they are judged.
_BUDGET = (
    *("model_name_or_path", "dataset_name", "dataset_config", "dataset_train_split", "figures_problems"),
    *("max_steps", "num_train_epochs", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("steps_per_generation", "num_iterations", "max_completion_length", "temperature", "top_p", "top_k"),
    *("dataset_test_split", "eval_problems", "eval_samples", "eval_sampled_problems", "accuracy_every"),
)
# Options of `cepo train` that no arm has, and why.
_NO_ARMS = {
    "seed": "chosen for each run; leave it out",
    "output_dir": "chosen for each run; leave it out",
    "dry_run": "for all arms at once; give cepo compare --dry_run",
}
CONFIG_KEYS = {"base", "arms", "seeds", "first_seed", "tune_learning_rate", "tune_seeds", "tune_beyond", "against"}
# For each option in which arms differ, its value in each arm.
Differences = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Its name, and its folder's.
        options: Of `cepo train`.
        seeds: How many.
        unread: Options of all arms that its method does not read, and that were therefore left out of `options`.
    """

    name: str
    options: dict[str, Any]
    seeds: int
    unread: tuple[str, ...] = ()


def read_config(path: Path | None) -> dict[str, Any]:
    """The YAML file, with `CONFIG_KEYS`, or the compare.json of an earlier comparison: its arms, to be run again.

    Raises:
        ValueError: If it is missing, or not of that form.
    """
    if path is None:
        return {}
    if path.suffix == ".json" and path.is_file():  # YAML takes 5e-05 for a word, JSON does not
        try:
            config = json.loads(path.read_text(encoding="utf-8")) or {}
        except json.JSONDecodeError as error:
            raise ValueError(f"--config: {path} is not JSON: {str(error).splitlines()[0]}") from error
    else:
        config = read_yaml(path) or {}
    if isinstance(config, dict) and {"options", "runs", "failed"} <= set(config):
        try:
            config = _again(config)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"--config: {path} is not as cepo compare writes it") from error
    if not isinstance(config, dict) or set(config) - CONFIG_KEYS:
        raise ValueError(
            f"--config: {path} must hold {', '.join(sorted(CONFIG_KEYS))}, or some of them, and nothing else"
        )
    base, arms = config.get("base") or {}, config.get("arms") or {}
    if not isinstance(base, dict) or not isinstance(arms, dict):
        raise ValueError(f"--config: in {path}, `base` must hold options, and `arms` names with options below each")
    for name, own in arms.items():
        if not isinstance(own or {}, dict):
            raise ValueError(f"--config: in {path}, arm {name} must hold options as `name: value` lines, not {own!r}")
    return config


def _again(result: dict[str, Any]) -> dict[str, Any]:
    """The arms that a compare.json tells of, with the learning rates that were chosen and the same seeds."""
    named = result["options"]
    some: dict[str, Any] = next(iter(named.values()), {})
    base = {key: value for key, value in some.items() if all(own.get(key) == value for own in named.values())}
    arms, first = {}, []
    for name, own in named.items():
        seeds = [run["seed"] for run in result["runs"].get(name, [])]
        seeds += [job["seed"] for job in result["failed"] if job["arm"] == name]
        first += seeds
        its = {key: value for key, value in own.items() if key not in base}
        # Earlier versions let arms have options that their methods do not read.
        arms[name] = {**readable(its, own.get("method", CEPOConfig.method)), "seeds": len(seeds)}
    against = list(result.get("against") or {})  # earlier versions knew of GRPO alone
    return {"base": base, "arms": arms, "first_seed": min(first, default=0), "against": against}


def read_arms(options: argparse.Namespace, config: dict[str, Any], rest: list[str]) -> tuple[dict[str, Any], list[Arm]]:
    """The options of all arms, and the arms; flags go over the file.

    Args:
        options: The flags of `cepo compare`.
        config: Of `read_config`.
        rest: Flags of `cepo train`.

    Raises:
        ValueError: Naming the arm.
    """
    base = {**_BASE, **_with_preset({**(config.get("base") or {}), **_flags(rest)})}
    named = {str(name): dict(own or {}) for name, own in (config.get("arms") or {}).items()}
    for method in [part.strip() for part in options.methods.split(",")] if options.methods else []:
        if method == BASE:  # the untrained policy has a row in every comparison
            continue
        named.setdefault(find_method(method).name, {"method": method})
    if not named:
        raise ValueError("which arms? Give --methods grpo,cepo or a --config with `arms`")
    seeds = options.seeds or config.get("seeds", _SEEDS)
    arms = []
    for name, own in named.items():
        if name in _TAKEN or Path(name).name != name or not name.isprintable():
            raise ValueError(
                f"arm {name!r}: choose another name, that can be a folder's and is none of "
                f"{', '.join(filter(None, _TAKEN))}"
            )
        count = options.seeds or own.pop("seeds", seeds)
        own.pop("seeds", None)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"arm {name}: seeds must be a number from 1 on, not {count!r}")
        with _named(name):
            own = _with_preset(own)
            method = own.get("method", base.get("method", CEPOConfig.method))
            # What all arms begin with reaches those that read it; an option of an arm's own that does not is refused.
            read = readable(base, method)
            arms.append(Arm(name, {**read, **own}, count, tuple(option for option in base if option not in read)))
    return base, arms


def _with_preset(options: dict[str, Any]) -> dict[str, Any]:
    """A preset as what it stands for, so that an arm's goes over the base's options."""
    rest = dict(options)
    name = rest.pop("preset", None)
    return rest if name is None else {**preset_options(name), **rest}


def _flags(rest: list[str]) -> dict[str, Any]:
    """`--name value`, `--name=value`, `--name value value` and `--name` as a dictionary."""
    found: dict[str, Any] = {}
    words = iter([part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])])
    name: str | None = None
    for word in words:
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


def read_tuning(options: argparse.Namespace, config: dict[str, Any]) -> Tuning:
    """Of learning rates; flags go over the file.

    Raises:
        ValueError: Naming what is wrong.
    """
    given = {name: getattr(options, f"tune_{name}") for name in ("seeds", "beyond")}
    counts = {name: config.get(f"tune_{name}") if count is None else count for name, count in given.items()}
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < (name == "seeds")):
            raise ValueError(f"tune_{name} must be a number{' from 1 on' if name == 'seeds' else ''}, not {count!r}")
    rates = parse_rates(options.tune_learning_rate or config.get("tune_learning_rate"))
    return Tuning(rates, **{name: count for name, count in counts.items() if count is not None})


def read_against(given: str | None, config: dict[str, Any], arms: Sequence[Arm]) -> list[str]:
    """The arms that all others are held against beside GRPO; the flag, names with commas between, goes over the file.

    Raises:
        ValueError: Naming what is no arm.
    """
    names = config.get("against") or [] if given is None else [part.strip() for part in given.split(",")]
    return others_named(names, [arm.name for arm in arms], "arm")


def check_arms(arms: list[Arm]) -> tuple[Differences, list[str]]:
    """Refuse now what a run would refuse in an hour.

    Returns:
        In what the arms differ, what a method implies included; and what else a reader of the results should know.

    Raises:
        ValueError: Naming the arm.
    """
    parsed = {}
    for arm in arms:
        for own, why in _NO_ARMS.items():
            if own in arm.options:
                raise ValueError(f"arm {arm.name}: {own} is {why}")
        with _named(arm.name):
            parsed[arm.name] = parse(command_line({**arm.options, "output_dir": "unused"}))
    seen = []
    for arm in arms:
        script_args, training_args, model_args = parsed[arm.name]
        method = training_args.chosen
        needs = (method.needs_solution, method.refuses)
        if (script_args, model_args, needs) in seen:
            continue
        seen.append((script_args, model_args, needs))
        with _named(arm.name):
            sources = check_sources(script_args, training_args, model_args)
            if sources.held_out is None:
                raise ValueError(
                    f"no held-out problems to compare on (eval_problems={script_args.eval_problems}, "
                    f"dataset_test_split={script_args.dataset_test_split!r} of {script_args.dataset_name}); give a "
                    "folder or a dataset on the Hub with that split, and at least one problem"
                )
            if needs[0]:
                check_dataset(sources.train_dataset, needs_solution=True, extractor=training_args.answer_extractor)
            check_method(sources.train_dataset, training_args)
    differences = _differences(parsed)
    notes = [
        f"Arms differ in {option} ({grouped(differences[option])}): this is no comparison at one budget."
        for option in _BUDGET
        if option in differences
    ]
    left_out = {option: [arm.name for arm in arms if option in arm.unread] for arm in arms for option in arm.unread}
    if left_out:
        listed = "; ".join(f"{option}: {', '.join(names)}" for option, names in left_out.items())
        notes.append(f"Options of all arms that an arm's method does not read are left out of it ({listed}).")
    notes += [note for name, arguments in parsed.items() for note in _hint_notes(name, *arguments)]
    if REFERENCE not in parsed:
        notes.append(f"There is no arm {REFERENCE!r}, so that no differences to it are given.")
    return differences, notes


def _differences(parsed: Mapping[str, Sequence[Any]]) -> Differences:
    values: Differences = {}
    for name, arguments in parsed.items():
        for part in arguments:
            for option in fields(part):
                value = getattr(part, option.name)
                if value is not None or option.name not in SELECTIVE:  # None: the method does not read it
                    values.setdefault(option.name, {})[name] = value
        _, training_args, _ = arguments
        values["skip_zero_advantage"][name] = training_args.skips
    return {option: found for option, found in values.items() if len(set(map(repr, found.values()))) > 1}


def grouped(values: Mapping[str, Any]) -> str:
    """An option's values, and which arms have each."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(repr(value), []).append(name)
    return "; ".join(f"{value}: {', '.join(having)}" for value, having in names.items())


def _hint_notes(name: str, script_args: Any, training_args: Any, model_args: Any) -> list[str]:
    """The shipped policy follows hints because it was trained on them, in the wordings that our methods have."""
    shipped = script_args.dataset_name == FIGURES and model_args.model_name_or_path == policy_path()
    if not shipped or training_args.hint_template in (None, *LEARNED_HINTS):
        return []
    return [f"Arm {name}: the shipped policy has not learned to read hints in this wording."]


@contextmanager
def _named(arm: str) -> Iterator[None]:
    """Says in which arm a mistake is."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"arm {arm}: {error}") from error
