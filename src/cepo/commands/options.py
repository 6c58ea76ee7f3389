"""Options that several commands share."""

import argparse

from ..data.loading import FIGURES
from ..references.hints import DEFAULT_HINT_TEMPLATE


def make_command_parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"cepo {command}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_name_or_path", default=None, help="folder or name of a model or PEFT adapter (none: the shipped one)"
    )


def add_dataset(parser: argparse.ArgumentParser, *, split: str) -> None:
    add = parser.add_argument
    add("--dataset_name", default=FIGURES, help="figures, a file, a folder, or a name on the Hub")
    add("--dataset_config", default=None, help="configuration; for figures: easy, default, long, hard or blank")
    add(split, default="test", help="which split")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max_completion_length", type=positive, default=256, help="longest answer, in tokens")
    add("--temperature", type=float, default=1.0, help="of sampling; 0 takes the most likely token")
    add("--batch_size", type=positive, default=64, help="answers sampled at a time")
    add("--seed", type=int, default=0, help="of sampling")


def add_verifier(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reward_func", default="accuracy_reward", help="the verifier: a name in trl.rewards, or module.function"
    )


def add_credit(parser: argparse.ArgumentParser) -> None:
    """The method's own options, as `cepo train` has them."""
    add = parser.add_argument
    add("--evidence_clip", type=float, default=0.5, help="eps_w: weights stay within 1 - eps_w and 1 + eps_w")
    add("--max_negatives", type=positive, default=4, help="K: the most wrong answers in a mixture")
    add("--teacher_batch_tokens", type=positive, default=16384, help="most tokens in a teacher's forward pass")
    add("--hint_template", default=DEFAULT_HINT_TEMPLATE, help="what a teacher reads at the end of the last user turn")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number


def require_clip(clip: float) -> None:
    """Refuse an `evidence_clip` that is out of range."""
    if not 0 < clip < 1:
        raise ValueError(f"evidence_clip (eps_w) must lie strictly between 0 and 1, got {clip}")
