"""`cepo train`: from options to a trained model, with held-out accuracy before and after."""

import json
import math
import shlex
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers.trainer_callback import PrinterCallback
from trl import get_peft_config, get_quantization_config

from ..compare.arms import command_line
from ..data.adapters import holds_adapters, load_adapters
from ..data.embedded import EMBEDDED
from ..data.errors import loading_errors
from ..data.files import write_whole
from ..data.models import require_chat_template
from ..data.saved import FOLDER
from ..inspection.tables import counted
from ..methods.registry import METHODS, own_options
from ..tasks.figures import NAME as FIGURES
from ..trainer.arguments import Sources, TrainArguments, check_sources, parse, read_command_line
from ..trainer.cepo_trainer import CEPOTrainer
from ..trainer.checkpoints import CheckpointError, check_output_dir, last_whole_checkpoint
from ..trainer.model_card import RunFacts
from ..trainer.nonfinite_gradients import GradientError
from ..trainer.resume_options import DATA_OPTIONS
from . import quiet_libraries
from .accuracy import AccuracyCallback
from .curves import draw_curves
from .dry_run import dry_run
from .launch import is_launched, prepare_launch
from .progress import Progress, StopOnInterrupt

# The data of a run, for `cepo explain --from`.
RUN_FILE = "run.json"


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Validate options, model and data, and return the job that trains."""
    quiet_libraries()
    line = read_command_line(arguments)
    if line.options.dry_run:
        return dry_run(line).report
    launched = is_launched()
    if (line.more_flags or line.more_config) and not launched:
        return prepare_launch(line, arguments)
    script_args, training_args, model_args = parse(line, launched=launched)
    check_output_dir(str(training_args.output_dir))
    sources = check_sources(script_args, training_args, model_args)
    model: Any = sources.model_name
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    quantization, peft_config = get_quantization_config(model_args), get_peft_config(model_args)
    if holds_adapters(model):  # these are trained further, with or without --use_peft
        options = {
            "trust_remote_code": training_args.trust_remote_code,
            "quantization_config": quantization,
            **training_args.model_init_kwargs,
        }
        with loading_errors("model_name_or_path", sources.model_name):
            model = load_adapters(model, **{name: value for name, value in options.items() if value is not None})
        training_args.model_init_kwargs = quantization = peft_config = None
    with loading_errors("model_name_or_path", sources.model_name):
        trainer = CEPOTrainer(
            model,
            sources.reward_funcs,
            training_args,
            sources.train_dataset,
            eval_dataset=sources.held_out if training_args.eval_strategy != "no" else None,
            quantization_config=quantization,
            peft_config=peft_config,
        )
    require_chat_template(trainer.processing_class)
    trainer.more_options = {
        "model_name_or_path": sources.model_name,
        "reward_funcs": script_args.reward_funcs,
        **{name: getattr(script_args, name) for name in DATA_OPTIONS},
    }
    if training_args.resume_from_checkpoint is not None:
        sources.notes.extend(trainer.check_resume(training_args.resume_from_checkpoint))
    return lambda console: _train(trainer, script_args, sources, ["cepo", "train", *arguments], console)


def _train(
    trainer: CEPOTrainer, script_args: TrainArguments, sources: Sources, command: list[str], console: Console
) -> int:
    started, args = time.monotonic(), trainer.args
    if trainer.accelerator.is_main_process:
        _write_run(script_args, Path(args.output_dir))
    else:
        console = Console(quiet=True)
    for line in (_headline(trainer, script_args), *sources.notes):
        console.print(line)
    accuracy = AccuracyCallback(trainer, script_args, sources.held_out, console)
    trainer.run_facts = lambda: _card_facts(script_args, command, accuracy)
    # TRL prints tables of completions past the console, which a bar would disturb.
    progress = Progress(console, live=False if args.log_completions else None)
    interrupt = StopOnInterrupt(console.quiet, trainer._distributed.all_reduce_max)
    trainer.remove_callback(PrinterCallback)
    for callback in (accuracy, progress, interrupt):
        trainer.add_callback(callback)
    try:
        with progress.bar:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except KeyboardInterrupt:
        console.print(_stopped(interrupt.saved))
        return interrupt.status
    except CheckpointError as error:
        last = last_whole_checkpoint(Path(args.output_dir))
        console.print(f"Stopped: {error}. {_resume(last) if last else 'No checkpoint is complete.'}")
        return 1
    except Exception as error:
        if not (isinstance(error, GradientError) and error.weights_corrupted):
            _save_after_failure(trainer, interrupt)
        console.print(_stopped(interrupt.saved))
        raise
    finally:
        interrupt.restore()
    if interrupt.interrupted():
        console.print(_stopped(interrupt.saved))
        # Launchers terminate the other processes as soon as one exits with such a status.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
        return interrupt.status

    trainer.save_model(args.output_dir, _internal_call=True)  # pushed below, with the accuracy in its card
    trainer.save_state()
    accuracy.measure_after()
    if trainer.accelerator.is_main_process:
        _write_summary(trainer, accuracy, time.monotonic() - started)
        seconds = ", ".join(f"{name} {value:.0f}" for name, value in trainer.seconds.items())
        console.print(f"{time.monotonic() - started:.0f} seconds ({seconds})")
        console.print(f"model, logs, summary.json and curves.png: {args.output_dir}")
        if explain := _explain_command(trainer, script_args):
            console.print(f"credit of each token: {explain}")
    trainer.create_model_card((args.hub_model_id or str(args.output_dir)).rstrip("/").split("/")[-1])
    if args.push_to_hub:
        trainer.push_to_hub(commit_message="Model save", revision=args.hub_revision)
    trainer.accelerator.end_training()  # gloo's threads may abort a process that exits while they run
    return 0


def _write_run(script_args: TrainArguments, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "dataset_name": script_args.dataset_name,
        "dataset_config": script_args.dataset_config,
        "dataset_split": script_args.dataset_train_split,
        "figures_problems": script_args.figures_problems,
        **script_args.given(),
    }
    write_whole(folder / RUN_FILE, json.dumps(data, indent=2) + "\n")


def _headline(trainer: CEPOTrainer, script_args: TrainArguments) -> Text:
    args = trainer.args
    prompts = args.generation_batch_size // args.num_generations
    # DeepSpeed's ZeRO-3 empties the parameters that it shards.
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters()) / 1e6
    steps = counted(args.max_steps, "step") if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    text = (
        f" on {script_args.dataset_name}: {parameters:.1f} M parameters, {steps} of {counted(prompts, 'prompt')} x "
        f"{args.num_generations} rollouts, seed {args.seed}"
    )
    return Text.assemble((args.method, "bold"), text)


def _card_facts(script_args: TrainArguments, command: list[str], accuracy: AccuracyCallback) -> RunFacts:
    name, config = script_args.dataset_name, script_args.dataset_config
    on_hub = name not in EMBEDDED and not Path(name).exists()
    data = f"{name}{f' ({config})' if config else ''}, {script_args.dataset_train_split}"
    if accuracy.before is not None:
        data += f"; held out: {script_args.dataset_test_split}"
    return RunFacts(command, data, name if on_hub else None, accuracy.before, accuracy.after)


def _save_after_failure(trainer: CEPOTrainer, interrupt: StopOnInterrupt) -> None:
    """Save a checkpoint in a run of one process; several would have to save together, and one has failed."""
    args, step = trainer.args, trainer.state.global_step
    if step == 0 or trainer.accelerator.num_processes > 1:
        return
    # A checkpoint from the end of the step is better: from it the run resumes bit-identically.
    existing = {Path(folder) for folder in (interrupt.saved, args.resume_from_checkpoint) if folder}
    if Path(args.output_dir) / f"checkpoint-{step}" not in existing:
        trainer._save_checkpoint(trainer.model, trial=None)
    trainer.control = trainer.callback_handler.on_save(args, trainer.state, trainer.control)


def _stopped(saved: str | None) -> str:
    return f"Stopped. {_resume(saved)}" if saved else "Stopped; no checkpoint was saved."


def _resume(checkpoint: str | Path) -> str:
    return f"Resume with: --resume_from_checkpoint {checkpoint}"


def _write_summary(trainer: CEPOTrainer, accuracy: AccuracyCallback, seconds: float) -> None:
    args, folder = trainer.args, Path(trainer.args.output_dir)
    summary = {
        "method": args.method,
        "seed": args.seed,
        "steps": trainer.state.global_step,
        "before": accuracy.before,
        "after": accuracy.after,
        "accuracy": accuracy.curve,
        "seconds": {"total": seconds, **trainer.seconds},
        "versions": {name: version(name) for name in ("cepo", "trl", "transformers", "torch")},
    }
    write_whole(folder / "summary.json", json.dumps(_without_nan(summary), indent=2) + "\n")
    title = f"{args.method}, seed {args.seed}"
    draw_curves(trainer.state.log_history, folder / "curves.png", title=title, accuracy=accuracy.curve)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _explain_command(trainer: CEPOTrainer, script_args: TrainArguments) -> str | None:
    """The command that shows the credit of the saved rollouts, or of new rollouts of the figures task."""
    args, folder = trainer.args, Path(trainer.args.output_dir)
    if any((folder / FOLDER).glob("step-*.parquet")):
        words = ["--from", str(folder)]
    elif script_args.dataset_name == FIGURES:
        config = script_args.dataset_config
        words = ["--model_name_or_path", str(folder), *(["--dataset_config", config] if config else [])]
    else:
        return None
    own = {name: args.given[name] for name in own_options(args.method) if name in args.given}
    if args.method not in METHODS or own:
        words += ["--method", args.method, *command_line(own)]
    return shlex.join(["cepo", "explain", *words])
