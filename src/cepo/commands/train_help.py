"""The help page of `cepo train`: the method's options by group, and those of TRL's that most runs touch."""

from ..methods.registry import METHODS
from ..methods.shared_options import GROUPS
from ..tasks.figures import figures_recipe
from ..trainer.arguments import make_parser
from ..trainer.cepo_config import own_options
from .options import Entry, help_page, shown_default

# The options that most runs touch; `--help-all` has every one.
_COMMON = {
    "model and data": (
        *("model_name_or_path", "dataset_name", "dataset_config", "dataset_format", "dataset_columns"),
        *("prompt_template", "system_prompt", "image_folder", "drop_incomplete_rows", "max_prompt_length"),
        *("reward_funcs", "reward_weights"),
    ),
    "before it costs anything": ("dry_run", "device_memory"),
    "training, of TRL": (
        *(
            "output_dir",
            "max_steps",
            "num_train_epochs",
            "learning_rate",
            "num_generations",
            "per_device_train_batch_size",
        ),
        *("gradient_accumulation_steps", "max_completion_length", "temperature", "use_peft", "lora_r", "bf16", "seed"),
        *("report_to", "log_completions", "resume_from_checkpoint"),
    ),
    "accuracy": ("eval_problems", "accuracy_every", "eval_samples", "eval_sampled_problems", "eval_batch_size"),
}
# What follows where the option itself is None, or says something that is not what happens.
_FOLLOWS = {
    "model_name_or_path": "figures: the shipped policy",
    "dataset_config": "figures: default",
    "reward_funcs": "answer_reward; figures: its own",
    "reward_weights": "1 for each",
    "output_dir": "trainer_output; figures: cepo-figures",
    "max_steps": "-1, num_train_epochs decides; figures: 28",
    "bf16": "true with a GPU, false without",
    "resume_from_checkpoint": "from the start",
}


def train_help(everything: bool) -> str:
    """The page; with `everything` it lists the other options of TRL and transformers too."""
    parser = make_parser()
    actions = {action.dest: action for action in parser._actions}
    recipe, own = figures_recipe(), own_options()

    def entry(name: str) -> Entry:
        if name in own:
            _, text, default = own[name]
        else:
            text = " ".join(str(actions[name].help).split()).replace("%%", "%").split(". ")[0]
            default = shown_default(actions[name].default)
        default = _FOLLOWS.get(name, default)
        if name in recipe and "figures:" not in default:
            default = f"{default}; figures: {recipe[name]}" if default else f"figures: {recipe[name]}"
        return f"--{name}", text, default

    groups = {title: [entry(name) for name, (of, *_) in own.items() if of == group] for group, title in GROUPS.items()}
    groups[GROUPS["method"]].append(entry("preset"))
    groups["methods, and what a token gets of its rollout's advantage"] = [
        (method.name, method.summary, "") for method in METHODS.values()
    ]
    common = {title: [entry(name) for name in names] for title, names in _COMMON.items()}
    shown = {name for names in _COMMON.values() for name in names} | set(own) | {"preset", "help"}
    if everything:
        common["the rest, of TRL and transformers"] = [entry(name) for name in sorted(set(actions) - shown)]
    return help_page(
        "cepo train [--config FILE.yaml] [OPTIONS]",
        "Train a policy. Options are TRL's GRPO options and these, as flags or as `name: value` lines of the YAML "
        "file; flags win. With neither model nor data: CEPO on the embedded figures task, sized for two CPU cores. An "
        "option that the chosen method does not read is refused.",
        {**common, **groups},
        "" if everything else "cepo train --help-all lists every option.",
    )
