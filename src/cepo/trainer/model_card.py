"""The model card of a run: TRL's, with the method's options, data, accuracy before and after, and the command.

Cards are published: they hold no path of the machine and no token.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl import GRPOTrainer

from ..data.files import write_whole
from ..inspection.tables import markdown_table
from ..methods.method import Method
from .cepo_config import CEPOConfig

_CITATION = "@misc{{{name},\n    title  = {{{title}}},\n    eprint = {{arXiv:{number}}},\n}}"
# Folders of an absolute path within a text; `//`, as in addresses, begins none.
_FOLDERS = re.compile(r"(?:file://|(?<![\w./]))/(?:[^/\s'\",;:]+/)+")
_SECRETS = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=://)[^/@\s]+(?=@)")  # tokens, and passwords in addresses
# TRL's options without which a result cannot be compared.
_RUN = ("learning_rate", "num_generations", "max_completion_length", "temperature", "loss_type", "beta", "seed")


@dataclass(frozen=True)
class RunFacts:
    """What a trainer does not know of its run.

    Attributes:
        command: The program and its arguments; empty if there was none.
        data: Training and held-out data in words; empty if not known.
        hub_dataset: Name of the data set on the Hub; None for another one.
        before, after: Accuracy as in summary.json, ``greedy`` and ``sampled``; None if not measured yet.
    """

    command: Sequence[str] = ()
    data: str = ""
    hub_dataset: str | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


def without_paths(text: str) -> str:
    """A text without folders of this machine, tokens and passwords."""
    text = _SECRETS.sub("...", text)
    return Path(text).name if text.startswith("/") and "\n" not in text else _FOLDERS.sub("", text)


def shown_command(arguments: Sequence[str]) -> str:
    """A command as a card shows it: absolute paths by their last part, no tokens."""
    words, named = [], ""
    for argument in arguments:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        secret = value and (flag or named).endswith("_token")
        words.append(flag + equals + (shlex.quote("..." if secret else without_paths(value)) if value else ""))
        named = flag
    return " ".join(words)


def paper_of(method: Method) -> dict[str, str]:
    """Title, number and citation of a method's paper, for TRL's card; empty for a method without one."""
    found = re.fullmatch(r"arXiv (\d{4}\.\d{4,5})", method.doc.source)
    if found is None:
        return {}
    if found[1] == GRPOTrainer._paper["id"]:
        return dict(GRPOTrainer._paper)
    title = method.doc.title or method.doc.source
    citation = _CITATION.format(name=method.name, title=title, number=found[1])
    return {"title": title, "id": found[1], "citation": citation}


class CardTrainer(GRPOTrainer):
    """TRL's trainer, whose model cards describe the run."""

    args: CEPOConfig
    method: Method
    reward_func_names: list[str]
    _correctness_index: int
    options_unknown_until: int | None
    #: Called whenever a card is written.
    card_facts: Callable[[], RunFacts] = RunFacts

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write TRL's card to the output directory, with a section on the run."""
        if not self.is_world_process_zero():
            return
        facts = self.card_facts()
        self._name = self.method.name.upper()
        self._paper = paper_of(self.method)
        model_name = model_name or Path(self.args.output_dir).name
        super().create_model_card(model_name, dataset_name or facts.hub_dataset, tags)
        path = Path(self.args.output_dir) / "README.md"
        card = path.read_text(encoding="utf-8")
        versions = "### Framework versions\n\n"
        changes = {
            versions: f"{self._run_section(facts)}\n{versions}- cepo: {version('cepo')}\n",
            # What TRL writes of a model that is not on the Hub, and of a licence that is not known.
            "a fine-tuned version of [None](https://huggingface.co/None)": "trained from one that is not on the Hub",
            'model="None"': f"model={json.dumps(model_name)}",
            "\nlicence: license\n": "\n",
        }
        if self._is_vlm:
            content = '[{"type": "image", "path": "picture.png"}, {"type": "text", "text": question}]'
            changes['"text-generation"'] = '"image-text-to-text"'
            changes['[{"role": "user", "content": question}]'] = f'text=[{{"role": "user", "content": {content}}}]'
            changes["max_new_tokens=128"] = f"max_new_tokens={self.args.max_completion_length}"
        for old, new in changes.items():
            card = card.replace(old, new, 1)
        write_whole(path, card)

    def _run_section(self, facts: RunFacts) -> str:
        method, args, state = self.method, self.args, self.state
        decides = self.reward_func_names[self._correctness_index]
        rewards = [decides, *(name for name in self.reward_func_names if name != decides)]
        rows = {
            **{name: value for name, value in args.method_options.as_dict().items() if value is not None},
            "model": getattr(self.model.config, "_name_or_path", "").rstrip("/"),
            "data": facts.data,
            "reward functions": ", ".join(rewards),
            "optimiser steps": state.global_step,
            "rollouts of a generation": args.generation_batch_size,
            **{name: getattr(args, name) for name in _RUN},
        }
        shown = [[name, without_paths(_text(value))] for name, value in rows.items() if value != ""]
        source = f" ({method.doc.source})" if method.doc.source else ""
        parts = [
            "## This run",
            f"`{method.name}`{source}: what a token gets of its rollout's advantage is {method.doc.summary}.",
            markdown_table(["option", "value"], shown),
        ]
        if state.global_step < state.max_steps:
            parts.append(f"Training has not come to its end: {state.global_step} of {state.max_steps} steps.")
        if self.options_unknown_until is not None:
            parts.append(
                f"Training was resumed at step {self.options_unknown_until} from a checkpoint that did not keep its "
                "options; those above are of the steps after it."
            )
        parts.append(f"### Accuracy on held-out problems\n\n{accuracy_table(facts.before, facts.after)}")
        if facts.command:
            lines = "\n".join(f"    {line}" for line in shown_command(facts.command).splitlines())
            parts.append(f"### Command\n\n{lines}")
        return "\n\n".join(parts) + "\n"


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value, default=str)


def accuracy_table(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Accuracy of greedy and sampled answers and pass@k, before and after, with 95 % intervals; Markdown."""
    rows = []
    for name in ("greedy", "sampled", "pass@k"):
        found = [((one or {}).get("sampled" if name == "pass@k" else name) or {}) for one in (before, after)]
        found = [one.get("pass_at") or {} for one in found] if name == "pass@k" else found
        known = next(filter(None, found), None)
        if known is not None:
            cells = [f"{x['accuracy']:.1%} [{x['low']:.1%}, {x['high']:.1%}]" if x else "-" for x in found]
            rows.append([f"{name.replace('@k', '@' + str(known.get('k')))}, {known['problems']} problems", *cells])
    return markdown_table(["answers, 95 % intervals", "before", "after"], rows) if rows else "Not measured."
