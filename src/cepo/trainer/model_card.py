"""The model card of a run: TRL's, with the method as it was set, data, accuracy before and after, and the command.

Cards are read by strangers: they hold no path of the machine and no token.
"""

import json
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl import GRPOTrainer

from ..data.files import write_whole
from ..inspection.tables import markdown_table
from ..methods.method import Method
from ..methods.options import MethodOptions
from .cepo_config import CEPOConfig

CARD = "README.md"
CEPO_PAPER = {
    "title": "CEPO: Contrastive Evidence Policy Optimization",
    "id": "2605.19436",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @article{cepo2026,
            title        = {{CEPO: Contrastive Evidence Policy Optimization}},
            year         = 2026,
            eprint       = {arXiv:2605.19436},
        }"""),
}
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
# A path from the root within a text: its folders. `//`, as in addresses, begins none.
_FOLDERS = re.compile(r"(?:file://|(?<![\w./]))/(?:[^/\s'\",;:]+/)+")
_TOKENS = re.compile(r"hf_[A-Za-z0-9]{8,}")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET = re.compile(r"(^|_)(token|password|secret|api_key)$")
# TRL's first lines of use, which ask text of a model; what was trained on pictures needs one.
_QUICK_START = re.compile(r"```python\nfrom transformers import pipeline\n.*?model=(\".*?\").*?\n```", re.DOTALL)
_WITH_PICTURE = """\
```python
from transformers import pipeline

content = [{{"type": "image", "path": "picture.png"}}, {{"type": "text", "text": "..."}}]  # one of the data set's
generator = pipeline("image-text-to-text", model={name}, device_map="auto")
output = generator(text=[{{"role": "user", "content": content}}], max_new_tokens={tokens}, return_full_text=False)[0]
print(output["generated_text"])
```"""
# Of TRL's options, those without which a number cannot be read.
_RUN = ("learning_rate", "num_generations", "max_completion_length", "temperature", "loss_type", "beta", "seed")


@dataclass(frozen=True)
class RunFacts:
    """What a trainer does not know of its run.

    Attributes:
        command: The arguments, the program first; empty: it was not started by one.
        data: What was trained on, and what was held out; empty: nobody says.
        hub_dataset: The name that it has on the Hub; None: it is not from there.
        before, after: As in summary.json: ``greedy`` and ``sampled``; None: not measured, or not yet.
    """

    command: Sequence[str] = ()
    data: str = ""
    hub_dataset: str | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


def without_paths(text: str) -> str:
    """A text without folders of this machine, tokens and credentials."""
    text = _CREDENTIALS.sub("", _TOKENS.sub("hf_...", text))
    if text.startswith("/") and "\n" not in text:  # one path, blanks and all
        return Path(text).name
    return _FOLDERS.sub("", text)


def shown_command(arguments: Sequence[str]) -> str:
    """A command as a card shows it: absolute paths by their last part, no tokens."""
    words, secret = [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            flag, equals, value = "", "", argument
        words.append(shlex.quote(f"{flag}{equals}{'...' if secret or _is_secret(flag) else without_paths(value)}"))
        if flag and not equals:
            words[-1] = flag
        secret = _is_secret(flag) and not equals
    return " ".join(words)


def _is_secret(flag: str) -> bool:
    return bool(_SECRET.search(flag.removeprefix("--")))


def paper_of(method: Method) -> dict[str, str]:
    """Title, number and citation of a method's paper, as TRL's card takes them; empty for what is no paper's."""
    found = _ARXIV.fullmatch(method.source)
    if found is None:
        return {}
    for known in (CEPO_PAPER, GRPOTrainer._paper):
        if known["id"] == found[1]:
            return dict(known)
    citation = textwrap.dedent(f"""\
        @misc{{{method.name},
            eprint        = {{{found[1]}}},
            archivePrefix = {{arXiv}},
            url           = {{https://arxiv.org/abs/{found[1]}}},
        }}""")
    return {"title": method.source, "id": found[1], "citation": citation}


def method_options(options: MethodOptions) -> dict[str, Any]:
    """What the method of a run reads, as it was: shared options, then its own constants."""
    method = options.chosen
    names = [name for name in options.__dataclass_fields__ if name in method.options]
    shared = {name: getattr(options, name) for name in ("negative_advantage_weight", "answer_extractor", *names)}
    return {name: value for name, value in {**shared, **asdict(options.constants)}.items() if value is not None}


def run_section(
    args: CEPOConfig,
    facts: RunFacts,
    *,
    model: str,
    steps: int,
    of: int,
    rewards: Sequence[str],
    unknown_until: int | None = None,
) -> str:
    """The part of a card that tells of the run, as Markdown.

    Args:
        args: Its options.
        facts: What these do not say.
        model: Name or folder of the model that was trained.
        steps, of: Optimiser steps that were made, and that were to be made.
        rewards: Names of the reward functions, the one that decides what is right first.
        unknown_until: The step up to which a run trained whose options are not known; None: there was none.
    """
    method = args.chosen
    source = f" ({method.source})" if method.source else ""
    parts = [
        "## This run",
        f"`{method.name}`{source}: what a token gets of its rollout's advantage is {method.summary}.",
    ]
    given = {name: _value(value) for name, value in method_options(args).items()}
    parts.append(_table("option of the method", given))
    run = {"model": without_paths(model.rstrip("/")), "data": without_paths(facts.data)}
    run |= {"reward functions": ", ".join(map(without_paths, rewards)), "optimiser steps": str(steps)}
    run |= {"rollouts of a generation": str(args.generation_batch_size)}
    run |= {name: _value(getattr(args, name)) for name in _RUN}
    parts.append(_table("run", {name: text for name, text in run.items() if text}))
    if steps < of:
        parts.append(f"Training has not come to its end: {steps} of {of} steps.")
    if unknown_until is not None:
        parts.append(
            f"Training was resumed at step {unknown_until} from a checkpoint that did not keep its options; those "
            "above are of the steps after it."
        )
    parts.append("### Accuracy on held-out problems")
    parts.append(_accuracy(facts))
    if facts.command:
        parts += ["### Command", textwrap.indent(shown_command(facts.command), "    ")]
    return "\n\n".join(parts) + "\n"


def _table(title: str, rows: Mapping[str, str]) -> str:
    return markdown_table([title, "value"], [[name, text] for name, text in rows.items()])


def _value(value: Any) -> str:
    return without_paths(value if isinstance(value, str) and value.isprintable() else json.dumps(value, default=str))


def _accuracy(facts: RunFacts) -> str:
    if facts.before is None and facts.after is None:
        return "Not measured."
    rows = []
    for name, path in (("greedy", ("greedy",)), ("sampled", ("sampled",)), ("pass@k", ("sampled", "pass_at"))):
        cells = [_share(_at(found, path)) for found in (facts.before, facts.after)]
        known = next((one for found in (facts.before, facts.after) if (one := _at(found, path))), None)
        if known is None:
            continue
        name = f"pass@{known['k']}" if "k" in known else name
        rows.append([f"{name}, {known['problems']} problems", *cells])
    return markdown_table(["answers", "before", "after"], rows) + "\n95 % intervals."


def _at(found: Mapping[str, Any] | None, path: Sequence[str]) -> Mapping[str, Any] | None:
    for name in path:
        found = (found or {}).get(name)
    return found


def _share(found: Mapping[str, Any] | None) -> str:
    return f"{found['accuracy']:.1%} [{found['low']:.1%}, {found['high']:.1%}]" if found else "-"


class CardTrainer(GRPOTrainer):
    """TRL's trainer, whose cards say what was run."""

    args: CEPOConfig
    method: Method
    reward_func_names: list[str]
    _correctness_index: int
    options_unknown_until: int | None
    #: What the card is to say beside what the trainer knows; asked whenever one is written.
    card_facts: Callable[[], RunFacts] = RunFacts

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write TRL's card to the output directory, with what was run."""
        if not self.is_world_process_zero():
            return
        facts = self.card_facts()
        self._name = "CEPO" if self.method.name == "cepo" else self.method.name
        self._paper = paper_of(self.method)
        model_name = model_name or Path(self.args.output_dir).name
        super().create_model_card(model_name, dataset_name or facts.hub_dataset, tags)
        path = Path(self.args.output_dir) / CARD
        decides = self._correctness_index
        rewards = [self.reward_func_names[decides], *(n for i, n in enumerate(self.reward_func_names) if i != decides)]
        model = getattr(self.model.config, "_name_or_path", "")
        steps, of = self.state.global_step, self.state.max_steps
        section = run_section(
            self.args,
            facts,
            model=model,
            steps=steps,
            of=of,
            rewards=rewards,
            unknown_until=self.options_unknown_until,
        )
        card = completed(path.read_text(encoding="utf-8"), section, model_name)
        if self._is_vlm:
            card = with_picture(card, self.args.max_completion_length)
        write_whole(path, card)


def with_picture(card: str, tokens: int) -> str:
    """A card whose first lines of use ask the model about a picture, with room for an answer of so many tokens."""
    return _QUICK_START.sub(lambda found: _WITH_PICTURE.format(name=found[1], tokens=tokens), card)


def completed(card: str, section: str, model_name: str) -> str:
    """TRL's card with a section before its versions, cepo's among these; without models named None, and without
    a licence that nobody filled in."""
    nobody = "This model is a fine-tuned version of [None](https://huggingface.co/None)"
    card = card.replace(nobody, "This model was trained from one that is not on the Hub")
    card = card.replace("\nlicence: license\n", "\n", 1)
    card = card.replace('model="None"', f"model={json.dumps(model_name)}")
    versions = "### Framework versions\n\n"
    return card.replace(versions, f"{section}\n{versions}- cepo: {version('cepo')}\n")
