"""`cepo train`: from options to a trained model, with its accuracy before and after."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from transformers.trainer_callback import PrinterCallback
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from ..compare.report import draw_curves
from ..data.checks import check_dataset
from ..data.evaluation import Accuracy, evaluate_accuracy
from ..data.loading import FIGURES, LoadingError, load_reward_funcs, load_split, require_chat_template, resolve_model
from ..methods.registry import METHODS
from ..tasks.figures import policy_path
from ..trainer.cepo_config import CEPOConfig, preset_options
from ..trainer.cepo_trainer import CEPOTrainer
from . import quiet_libraries
from .progress import AccuracyCurve, ProgressLines, StopOnInterrupt

# What was trained on, for commands that come later.
RUN_FILE = "run.json"
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


@dataclass
class TrainArguments(ScriptArguments):
    """TRL's script arguments, the reward functions, and how accuracy is measured."""

    dataset_name: str = field(
        default=FIGURES,
        metadata={"help": "figures (embedded), a JSON, CSV or parquet file, a folder, or a name on the Hub."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy_reward"],
        metadata={
            "help": "Names in trl.rewards, or import paths (module.function). The first one decides what is right."
        },
    )
    eval_problems: int = field(
        default=400,
        metadata={"help": "Held-out problems on which accuracy is measured before and after; 0: do not measure."},
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Values to start from: paper, every option of the method as the paper has it; rlsd, RLSD's own."
        },
    )
    accuracy_every: int = field(
        default=0, metadata={"help": "Measure held-out accuracy every so many steps too; 0: before and after only."}
    )
    figures_problems: int = field(default=2000, metadata={"help": "Training problems to make, for the figures task."})


class _Parser(TrlParser):
    """TRL's parser, whose errors are one line rather than a list of three hundred options."""

    def error(self, message: str):
        raise ValueError(message)


def make_parser() -> TrlParser:
    return _Parser((TrainArguments, CEPOConfig, ModelConfig), prog="cepo train", allow_abbrev=False)


def figures_recipe() -> dict[str, Any]:
    """Options that fit the embedded task, under those that the user gives."""
    return yaml.safe_load((files("cepo.tasks.figures") / "recipe.yaml").read_text())


def parse(arguments: list[str]) -> tuple[TrainArguments, CEPOConfig, ModelConfig]:
    """Options from flags, over those of ``--config``, over the recipe of the embedded task where that is trained.

    Raises:
        ValueError, OSError: With a message for the user.
    """
    parser = make_parser()
    # `--config=FILE` too, though TRL's parser looks for two words.
    arguments = [
        part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    given = _config_file(arguments)
    dataset = _flag(arguments, "--dataset_name") or given.get("dataset_name") or FIGURES
    preset = _flag(arguments, "--preset") or given.get("preset")
    unknown: list[str] = []
    if dataset == FIGURES:
        parser.set_defaults_with_config(model_name_or_path=policy_path(), **figures_recipe())
    if preset is not None:
        parser.set_defaults_with_config(**preset_options(preset))
    try:
        *parsed, unknown = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    except TypeError as error:  # a value in the YAML file of a type that the option cannot take
        raise ValueError(f"in the options: {error}") from error
    if unknown:
        raise ValueError(_unknown_option(unknown, parser))
    script_args, training_args, model_args = parsed
    if not model_args.model_name_or_path:
        raise ValueError("which model? Give --model_name_or_path a folder or a name on the Hub.")
    if isinstance(script_args.reward_funcs, str):  # one name in a YAML file
        script_args.reward_funcs = [script_args.reward_funcs]
    if not script_args.reward_funcs:
        raise ValueError("reward_funcs: at least one is needed, to tell right from wrong")
    if model_args.use_peft and model_args.lora_target_modules is None:
        # PEFT knows no default for the newer architectures; this serves all of them.
        model_args.lora_target_modules = "all-linear"
    resume = training_args.resume_from_checkpoint
    if resume and resume not in ("True", "true") and not (Path(resume) / "trainer_state.json").is_file():
        raise ValueError(f"resume_from_checkpoint: {resume} holds no checkpoint (no trainer_state.json)")
    return script_args, training_args, model_args


def _flag(arguments: list[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def _config_file(arguments: list[str]) -> dict[str, Any]:
    if "--config" not in arguments:
        return {}
    path = _flag(arguments, "--config")
    if path is None:
        raise ValueError("--config: which file?")
    if not Path(path).is_file():
        raise ValueError(f"--config: there is no such file: {path}")
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"--config: {path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config: {path} must hold options as `name: value` lines")
    return content


def _unknown_option(unknown: list[str], parser: TrlParser) -> str:
    from difflib import get_close_matches

    option = next((text for text in unknown if text.startswith("--")), unknown[0]).partition("=")[0]
    known = [flag for action in parser._actions for flag in action.option_strings]
    close = get_close_matches(option, known, n=1)
    return f"unknown option {option}" + (f"; did you mean {close[0]}?" if close else "")


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Everything that can be refused is refused here; what is returned trains and gives the exit status.

    Raises:
        ValueError, TypeError, OSError: For mistakes in options, model or data.
    """
    quiet_libraries()
    script_args, training_args, model_args = parse(arguments)
    model_name, reward_funcs, train_dataset, held_out = check_sources(script_args, training_args, model_args)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = CEPOTrainer(
        model_name,
        reward_funcs,
        training_args,
        train_dataset,
        eval_dataset=held_out if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    require_chat_template(trainer.processing_class)
    return lambda console: _train(trainer, script_args, held_out, console)


def check_sources(
    script_args: TrainArguments, training_args: CEPOConfig, model_args: ModelConfig
) -> tuple[str, list[Any], Any, Any]:
    """The model's name, reward functions, training set and held-out problems (None: there are none) of a run.

    Raises:
        ValueError, OSError: If one of them is not there or not as it should be.
    """
    model_name = resolve_model(model_args.model_name_or_path)
    train_dataset = load_split(
        script_args.dataset_name,
        script_args.dataset_train_split,
        config=script_args.dataset_config,
        size=script_args.figures_problems,
        streaming=script_args.dataset_streaming,
    )
    held_out = _held_out_problems(script_args)
    reward_funcs = load_reward_funcs(script_args.reward_funcs)
    # The verifiers compare with the solution, whatever the method. Where teachers need it, the trainer checks the
    # training set itself, and a second pass over every row would find nothing new.
    judged = any("accuracy" in name for name in script_args.reward_funcs)
    if not METHODS[training_args.method].needs_teachers:
        check_dataset(train_dataset, needs_solution=judged)
    if held_out is not None:
        check_dataset(held_out, needs_solution=judged, name="the held-out split")
    return model_name, reward_funcs, train_dataset, held_out


def _held_out_problems(script_args: TrainArguments) -> Any:
    """The held-out problems, or None where there are none to be had."""
    if script_args.eval_problems <= 0:
        return None
    wanted = script_args.eval_problems
    try:
        data = load_split(
            script_args.dataset_name, script_args.dataset_test_split, config=script_args.dataset_config, size=wanted
        )
    except LoadingError:
        return None
    if Path(script_args.dataset_name).is_file():  # one file has one split: the training set holds nothing out
        return None
    return data.select(range(min(wanted, len(data)))) if len(data) else None


def _train(trainer: CEPOTrainer, script_args: TrainArguments, held_out: Any, console: Console) -> int:
    started = time.monotonic()
    args = trainer.args
    if trainer.accelerator.is_main_process:
        _write_run(Path(args.output_dir), script_args)
    if not trainer.accelerator.is_main_process:
        console = Console(quiet=True)
    console.print(_headline(trainer, script_args), highlight=False)
    before = _measure(trainer, held_out, "before training", console)

    trainer.remove_callback(PrinterCallback)
    interrupt = StopOnInterrupt(console)
    trainer.add_callback(ProgressLines(console, trainer.reward_func_names[trainer._correctness_index]))
    trainer.add_callback(interrupt)
    every = script_args.accuracy_every if before is not None else 0
    curve = AccuracyCurve(every, lambda when: _measure(trainer, held_out, when, console))
    trainer.add_callback(curve)
    try:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except KeyboardInterrupt:  # the second one
        interrupt.restore()
        _print_resume(trainer, interrupt, console)
        return INTERRUPTED
    except Exception:
        interrupt.restore()
        _save_what_there_is(trainer)
        _print_resume(trainer, interrupt, console)
        raise
    if interrupt.interrupted:
        _print_resume(trainer, interrupt, console)
        return INTERRUPTED

    trainer.save_model(args.output_dir)
    trainer.save_state()
    after = _measure(trainer, held_out, "after training", console)
    if trainer.accelerator.is_main_process:
        points = [(0, before), *curve.points, (trainer.state.global_step, after)]
        _write_summary(trainer, [(step, a) for step, a in points if a is not None], time.monotonic() - started, console)
    return 0


def _write_run(folder: Path, script_args: TrainArguments) -> None:
    """What `cepo explain --from` needs to know of this run."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "dataset_name": script_args.dataset_name,
        "dataset_config": script_args.dataset_config,
        "dataset_split": script_args.dataset_train_split,
        "figures_problems": script_args.figures_problems,
    }
    (folder / RUN_FILE).write_text(json.dumps(about, indent=2) + "\n")


def _headline(trainer: CEPOTrainer, script_args: TrainArguments) -> str:
    args = trainer.args
    prompts = args.generation_batch_size // args.num_generations
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    return (
        f"[bold]{args.method}[/bold] on {script_args.dataset_name}: a policy of {parameters:.1f} M parameters, "
        f"{trainer.args.max_steps if trainer.args.max_steps > 0 else 'all'} steps of {prompts} prompts x "
        f"{args.num_generations} rollouts, seed {args.seed}"
    )


def _measure(trainer: CEPOTrainer, held_out: Any, when: str, console: Console) -> Accuracy | None:
    if held_out is None:
        if when == "before training" and trainer.accelerator.is_main_process:
            console.print("No held-out problems: accuracy before and after is not measured.")
        return None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        console.print(f"Accuracy {when} is not measured with sharded weights; use `cepo evaluate`.")
        return None
    with console.status(f"held-out accuracy {when}"):
        accuracy, _ = evaluate_accuracy(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            held_out,
            max_completion_length=trainer.max_completion_length,
            temperature=trainer.temperature,
            top_p=trainer.top_p,
            top_k=trainer.top_k,
            chat_template_kwargs=trainer.chat_template_kwargs,
            batch_size=max(64, trainer.args.per_device_eval_batch_size),
            seed=trainer.args.seed,
            reward_func=trainer.reward_funcs[trainer._correctness_index],
        )
    console.print(f"held-out accuracy {when}: [bold]{accuracy}[/bold]", highlight=False)
    return accuracy


def _save_what_there_is(trainer: CEPOTrainer) -> None:
    """A checkpoint after a failure; not with several processes, where saving needs all of them and one has failed."""
    if trainer.state.global_step > 0 and trainer.accelerator.num_processes == 1:
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


def _print_resume(trainer: CEPOTrainer, interrupt: StopOnInterrupt, console: Console) -> None:
    if interrupt.saved is None:
        done = trainer.state.global_step
        console.print(f"Stopped; {f'{done} steps were not saved' if done else 'nothing had been trained yet'}.")
        return
    console.print(f"Saved {interrupt.saved}. Go on with: --resume_from_checkpoint {interrupt.saved}")


def _write_summary(
    trainer: CEPOTrainer, accuracy: list[tuple[int, Accuracy]], seconds: float, console: Console
) -> None:
    args, history = trainer.args, trainer.state.log_history
    before = next((found for step, found in accuracy if step == 0), None)
    after = accuracy[-1][1] if accuracy else None
    folder = Path(args.output_dir)
    summary = {
        "method": args.method,
        "seed": args.seed,
        "steps": trainer.state.global_step,
        "accuracy_before": before and before.as_dict(),
        "accuracy_after": after and after.as_dict(),
        "accuracy": [{"step": step, **found.as_dict()} for step, found in accuracy],
        "seconds": {"total": seconds, **trainer.seconds},
        "versions": {name: version(name) for name in ("cepo", "trl", "transformers", "torch")},
    }
    (folder / "summary.json").write_text(json.dumps(_finite(summary), indent=2) + "\n")
    draw_curves(history, folder / "curves.png", title=f"{args.method}, seed {args.seed}", before=before, after=after)
    parts = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items() if name != "total")
    console.print(f"{seconds:.0f} seconds in total: {parts}", highlight=False)
    console.print(f"The model, its logs, summary.json and curves.png are in {folder}", highlight=False)


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
