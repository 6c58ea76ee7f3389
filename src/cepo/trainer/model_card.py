"""The section on the run that is appended to TRL's model card.

Model cards are published, so folders of this machine, tokens and passwords are removed.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl import GRPOTrainer

from ..inspection.tables import markdown_table
from ..methods.method import Method

# Folders of an absolute path; the `//` of a URL starts none.
_FOLDERS = re.compile(r"(?:file://|(?<![\w./]))/(?:[^/\s'\",;:]+/)+")
_SECRETS = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=://)[^/@\s]+(?=@)")  # tokens, and passwords in URLs
# TRL's options without which a result cannot be compared.
_RUN = ("learning_rate", "num_generations", "max_completion_length", "temperature", "loss_type", "beta", "seed")


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run that its trainer does not have.

    Attributes:
        command: Program and arguments; empty without a command line.
        data: Training and held-out data in words.
        hub_dataset: Name of the dataset on the Hub, if it is there.
        before, after: Accuracy as in summary.json; None if not measured.
    """

    command: Sequence[str] = ()
    data: str = ""
    hub_dataset: str | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


def without_secrets(text: str) -> str:
    """A text without folders of this machine, tokens and passwords."""
    text = _SECRETS.sub("...", text)
    return Path(text).name if text.startswith("/") and "\n" not in text else _FOLDERS.sub("", text)


def public_command(arguments: Sequence[str]) -> str:
    """A command line without secrets; options that end in `_token` lose their value."""
    words, last_flag = [], ""
    for argument in arguments:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        secret = value and (flag or last_flag).endswith("_token")
        words.append(flag + equals + (shlex.quote("..." if secret else without_secrets(value)) if value else ""))
        last_flag = flag
    return " ".join(words)


def paper_of(method: Method) -> dict[str, str]:
    """Title, number and citation of a method's paper, as TRL's card takes them; empty for a method without a paper."""
    found = re.fullmatch(r"arXiv (\d{4}\.\d{4,5})", method.doc.source)
    if found is None:
        return {}
    if found[1] == GRPOTrainer._paper["id"]:
        return dict(GRPOTrainer._paper)
    title = method.doc.title or method.doc.source
    citation = f"@misc{{{method.name},\n    title  = {{{title}}},\n    eprint = {{arXiv:{found[1]}}},\n}}"
    return {"title": title, "id": found[1], "citation": citation}


def run_section(trainer: Any, facts: RunFacts) -> str:
    """The section "This run": method, options, data, accuracy before and after, command; Markdown."""
    method, args, state = trainer.method, trainer.args, trainer.state
    rows = {
        **{name: value for name, value in args.method_options.as_dict().items() if value is not None},
        "model": getattr(trainer.model.config, "_name_or_path", "").rstrip("/"),
        "data": facts.data,
        "reward functions": ", ".join(trainer.reward_func_names),
        "optimizer steps": state.global_step,
        "rollouts per generation": args.generation_batch_size,
        **{name: getattr(args, name) for name in _RUN},
        "cepo": version("cepo"),
    }
    texts = {k: v if isinstance(v, str) and v.isprintable() else json.dumps(v, default=str) for k, v in rows.items()}
    shown = [[name, without_secrets(text)] for name, text in texts.items() if text]
    source = f" ({method.doc.source})" if method.doc.source else ""
    parts = [
        "## This run",
        f"`{method.name}`{source}: a token's share of its rollout's advantage: {method.doc.summary}.",
        markdown_table(["option", "value"], shown),
    ]
    if state.global_step < state.max_steps:
        parts.append(f"Training has not ended: {state.global_step} of {state.max_steps} steps.")
    parts.append(f"### Accuracy on held-out problems\n\n{_accuracy_table(facts)}")
    if facts.command:
        command = public_command(facts.command).replace("\n", "\n    ")
        parts.append(f"### Command\n\n    {command}")
    return "\n\n".join(parts) + "\n"


def _accuracy_table(facts: RunFacts) -> str:
    """Accuracy of greedy and sampled answers and pass@k with 95 % intervals, before and after."""
    rows = []
    for label, path in (("greedy", ["greedy"]), ("sampled", ["sampled"]), ("pass@{k}", ["sampled", "pass_at"])):
        found: list[Any] = [facts.before, facts.after]
        for key in path:
            found = [(one or {}).get(key) for one in found]
        if known := next(filter(None, found), None):
            cells = [f"{x['accuracy']:.1%} [{x['low']:.1%}, {x['high']:.1%}]" if x else "-" for x in found]
            rows.append([f"{label.format(k=known.get('k'))}, {known['problems']} problems", *cells])
    return markdown_table(["answers, 95 % intervals", "before", "after"], rows) if rows else "Not measured."
