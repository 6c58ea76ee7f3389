"""`cepo train`: from options to a trained model, with its accuracy before and after."""

import json
import math
import os
import shlex
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import create_repo
from rich.console import Console
from rich.text import Text
from transformers.trainer_callback import PrinterCallback
from trl import get_peft_config, get_quantization_config

from ..compare.jobs import command_line, stopped_by_signals
from ..data.embedded import EMBEDDED
from ..data.evaluation import Accuracy
from ..data.files import write_whole
from ..data.hub import HubError, hub_errors
from ..data.loading import holds_adapters, load_adapters, model_errors_named, require_chat_template
from ..data.saved import FOLDER
from ..inspection.tables import counted
from ..methods.options import OtherModelOptions
from ..methods.registry import METHODS
from ..tasks.figures import NAME as FIGURES
from ..trainer.arguments import Sources, TrainArguments, check_sources, parse, read_command_line
from ..trainer.cepo_config import CEPOConfig
from ..trainer.cepo_trainer import CEPOTrainer
from ..trainer.checkpoints import CheckpointError, check_output_dir, last_whole_checkpoint
from ..trainer.model_card import RunFacts
from ..trainer.nonfinite_gradients import GradientError
from ..trainer.resume_options import DATA_OPTIONS
from ..trainer.sharding import is_sharded
from . import quiet_libraries
from .accuracy import AccuracyCurve, BeforeTraining, Measure, Measured
from .curves import draw_curves
from .dry_run import prepare_dry_run
from .launch import LAUNCHED, prepare_launch
from .options import own_option_names
from .progress import INTERRUPTED, Progress, StopOnInterrupt

# What was trained on, for commands that come later.
RUN_FILE = "run.json"


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Everything that can be refused is refused here; what is returned trains and gives the exit status.

    Raises:
        ValueError, TypeError, OSError: For mistakes in options, model or data.
    """
    quiet_libraries()
    line = read_command_line(arguments)
    if line.options.dry_run:
        return prepare_dry_run(line)
    launched = "WORLD_SIZE" in os.environ or LAUNCHED in os.environ
    if (line.more_flags or line.more_config) and not launched:
        return prepare_launch(line, arguments)
    script_args, training_args, model_args = parse(line, launched=launched)
    check_output_dir(str(training_args.output_dir))
    sources = check_sources(script_args, training_args, model_args)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    model: Any = sources.model_name
    loading = {"quantization_config": get_quantization_config(model_args), "peft_config": get_peft_config(model_args)}
    if holds_adapters(model):  # of an earlier run: they are trained on, whatever --use_peft says
        options = {"trust_remote_code": training_args.trust_remote_code, **training_args.model_init_kwargs}
        options |= {"quantization_config": loading["quantization_config"]}
        with model_errors_named("model_name_or_path", sources.model_name):
            model = load_adapters(model, **{name: value for name, value in options.items() if value is not None})
        training_args.model_init_kwargs, loading = None, {}
    completions = training_args.log_completions_hub_repo if training_args.log_completions else None
    if completions is not None and training_args.process_index == 0:  # as TRL does later
        with hub_errors("log_completions_hub_repo: the data set cannot be made on the Hub", "leave it out"):
            create_repo(completions, private=training_args.hub_private_repo, repo_type="dataset", exist_ok=True)
    with model_errors_named("model_name_or_path", sources.model_name):
        trainer = CEPOTrainer(
            model,
            sources.reward_funcs,
            training_args,
            sources.train_dataset,
            eval_dataset=sources.held_out if training_args.eval_strategy != "no" else None,
            **loading,
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
    started = time.monotonic()
    args = trainer.args
    if trainer.accelerator.is_main_process:
        _write_run(Path(args.output_dir), script_args)
    if not trainer.accelerator.is_main_process:
        console = Console(quiet=True)
    held_out = sources.held_out
    for line in (_headline(trainer, script_args), *sources.notes):
        console.print(line, highlight=False)
    measure = Measure(trainer, script_args, held_out, console)
    before = BeforeTraining(measure, args.resume_from_checkpoint)
    after: Measured | None = None
    trainer.card_facts = lambda: _facts(script_args, command, held_out, before, after)
    if not is_sharded(trainer):  # there, until training begins, processes hold weights that are nobody's
        before.measure()
    trainer.add_callback(before)

    trainer.remove_callback(PrinterCallback)
    interrupt = StopOnInterrupt(console, trainer._processes.all_reduce_max)
    # TRL prints its tables of completions past the console, through a line that changes.
    progress = Progress(console, live=False if args.log_completions else None)
    trainer.add_callback(progress)
    trainer.add_callback(interrupt)
    every = script_args.accuracy_every if held_out is not None else 0
    curve = AccuracyCurve(every, measure.greedy)
    trainer.add_callback(curve)
    try:
        with progress:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except KeyboardInterrupt:  # the second one
        interrupt.restore()
        _print_resume(trainer, interrupt, console)
        return interrupt.status
    except CheckpointError as error:
        interrupt.restore()
        last = last_whole_checkpoint(Path(args.output_dir))
        goes_on = f"Go on with: --resume_from_checkpoint {last}" if last else "No checkpoint is whole."
        console.print(f"Stopped: {error}. {goes_on}", highlight=False, markup=False)
        return 1
    except Exception as error:
        interrupt.restore()
        if not (isinstance(error, GradientError) and error.spoilt):
            _save_what_there_is(trainer, interrupt)
        _print_resume(trainer, interrupt, console)
        raise
    if interrupt.agreed():
        _print_resume(trainer, interrupt, console)
        # The first process that ends with such a status makes launchers end the others.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
        return interrupt.status

    trainer.save_model(args.output_dir, _internal_call=True)  # which pushes nothing: accuracy is not known yet
    trainer.save_state()
    # Several processes measure together: none may leave the others alone.
    with stopped_by_signals() if trainer.accelerator.num_processes == 1 else nullcontext():
        try:
            after = measure("after training")
        except KeyboardInterrupt:
            console.print(
                f"Stopped before its accuracy was known; cepo evaluate measures it. The trained model is in "
                f"{args.output_dir}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            trainer.create_model_card(_model_name(args))
            return INTERRUPTED
    if trainer.accelerator.is_main_process:
        _write_summary(trainer, before, curve.points, after, time.monotonic() - started, console)
        _print_next(script_args, args, console)
    trainer.create_model_card(_model_name(args))
    status = 0
    if args.push_to_hub:
        try:
            trainer.push_to_hub(commit_message="Model save", revision=args.hub_revision)
        except HubError as error:
            console.print(str(error), highlight=False, markup=False, soft_wrap=True)
            status = 1
    trainer.accelerator.end_training()  # gloo's threads, left running, may abort a process that is done
    return status


def _write_run(folder: Path, script_args: TrainArguments) -> None:
    """What `cepo explain --from` needs to know of this run."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "dataset_name": script_args.dataset_name,
        "dataset_config": script_args.dataset_config,
        "dataset_split": script_args.dataset_train_split,
        "figures_problems": script_args.figures_problems,
        **script_args.given(),
    }
    write_whole(folder / RUN_FILE, json.dumps(about, indent=2) + "\n")


def _facts(
    script_args: TrainArguments, command: list[str], held_out: Any, before: BeforeTraining, after: Measured | None
) -> RunFacts:
    """What the model card says beside what the trainer knows."""
    name, part = script_args.dataset_name, script_args.dataset_config
    known = name not in EMBEDDED and not Path(name).exists()
    data = f"{name}{f' ({part})' if part else ''}, {script_args.dataset_train_split}"
    if held_out is not None:
        data += f"; held out: {script_args.dataset_test_split}"
    return RunFacts(command, data, name if known else None, before.measured, after.as_dict() if after else None)


def _model_name(args: Any) -> str:
    """As TRL names a model in its card."""
    return (args.hub_model_id or str(args.output_dir)).rstrip("/").split("/")[-1]


def _headline(trainer: CEPOTrainer, script_args: TrainArguments) -> Text:
    args = trainer.args
    prompts = args.generation_batch_size // args.num_generations
    # DeepSpeed's ZeRO-3 leaves nothing in the parameters that it shards.
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters()) / 1e6
    return Text.assemble(
        (args.method, "bold"),
        f" on {script_args.dataset_name}: a policy of {parameters:.1f} M parameters, "
        f"{counted(args.max_steps, 'step') if args.max_steps > 0 else 'all steps'} of {counted(prompts, 'prompt')} x "
        f"{args.num_generations} rollouts, seed {args.seed}",
    )


def _save_what_there_is(trainer: CEPOTrainer, interrupt: StopOnInterrupt) -> None:
    """A checkpoint after a failure; not with several processes, where saving needs all of them and one has failed."""
    args, step = trainer.args, trainer.state.global_step
    if step > 0 and trainer.accelerator.num_processes == 1:
        # What was saved at the end of the step is better: from it a run goes on to the bit.
        saved = {Path(folder) for folder in (interrupt.saved, args.resume_from_checkpoint) if folder}
        if not saved & {Path(args.output_dir) / f"checkpoint-{step}"}:
            trainer._save_checkpoint(trainer.model, trial=None)
        trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


def _print_resume(trainer: CEPOTrainer, interrupt: StopOnInterrupt, console: Console) -> None:
    if interrupt.saved is None:
        done = trainer.state.global_step
        console.print(f"Stopped; {f'{done} steps were not saved' if done else 'nothing had been trained yet'}.")
        return
    console.print(f"Saved {interrupt.saved}. Go on with: --resume_from_checkpoint {interrupt.saved}")


def _write_summary(
    trainer: CEPOTrainer,
    before: BeforeTraining,
    between: list[tuple[int, Accuracy]],
    after: Measured | None,
    seconds: float,
    console: Console,
) -> None:
    args, history = trainer.args, trainer.state.log_history
    curve = [
        *([(0, before.greedy)] if before.greedy else []),
        *between,
        *([(trainer.state.global_step, after.greedy.accuracy)] if after else []),
    ]
    folder = Path(args.output_dir)
    summary = {
        "method": args.method,
        "seed": args.seed,
        "steps": trainer.state.global_step,
        "before": before.measured,
        "after": after and after.as_dict(),
        # Greedy, over training.
        "accuracy": [{"step": step, **found.as_dict()} for step, found in curve],
        "seconds": {"total": seconds, **trainer.seconds},
        "versions": {name: version(name) for name in ("cepo", "trl", "transformers", "torch")},
    }
    write_whole(folder / "summary.json", json.dumps(_finite(summary), indent=2) + "\n")
    draw_curves(history, folder / "curves.png", title=f"{args.method}, seed {args.seed}", greedy=curve)
    parts = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items() if name != "total")
    rest = "; the rest is evaluation, loading and saving"
    console.print(f"{seconds:.0f} seconds in total: {parts}{rest}", highlight=False)
    console.print(f"The model, its logs, summary.json and curves.png are in {folder}", highlight=False)


def _print_next(script_args: TrainArguments, args: CEPOConfig, console: Console) -> None:
    """The command that shows the run's credit, of the rollouts that it saved or of new ones."""
    folder = Path(args.output_dir)
    if any((folder / FOLDER).glob("step-*.parquet")):
        rest = ["--from", str(folder)]
    elif script_args.dataset_name == FIGURES:
        config = script_args.dataset_config
        rest = ["--model_name_or_path", str(folder), *(["--dataset_config", config] if config else [])]
    else:  # it would take all the options that tell how the data are read
        return
    own = {name: args.given[name] for name in own_option_names(args.method) if name in args.given}
    if args.method not in METHODS or own:
        rest += ["--method", args.method, *command_line(own)]
    elif args.method_spec.changes_advantages and not isinstance(args.method_options, OtherModelOptions):
        rest += ["--show", args.method]
    command = shlex.join(["cepo", "explain", *rest])
    console.print(f"Which tokens get the credit: {command}", highlight=False, markup=False, soft_wrap=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
