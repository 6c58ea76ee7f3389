"""Hint following of the shipped policy for the content and wording of every method's hint."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from cepo.data.accuracy import Accuracy
from cepo.data.sampling import Sampling, answer_texts, sample
from cepo.methods.contrib.cscr import SAID_CORRECT, SAID_WRONG, CSCROptions
from cepo.methods.options import HintOptions
from cepo.methods.rlcsd import HINT_TEMPLATE as RLCSD_HINT
from cepo.methods.rlcsd import asserted
from cepo.references.equality import same_answer
from cepo.references.extraction import final_answer
from cepo.references.groups import Group, Rollout
from cepo.references.hints import add_hint, fill_hint
from cepo.references.negatives import choose_references
from cepo.scoring.prompts import cut_text, without_marks
from cepo.tasks.figures import figures_reward

_NUMBER = re.compile(r"\d+")
# (completion, content of the hint, attempt that the hint is about, is the completion correct) -> is the hint followed.
Follows = Callable[[str, str, Rollout, bool], bool]


def same_ending(completion: str, content: str, attempt: Rollout, correct: bool) -> bool:  # noqa: ARG001
    """The completion ends with the attempt's answer."""
    given = final_answer(completion)
    return given is not None and attempt.answer is not None and same_answer(given, attempt.answer)


def same_beginning(completion: str, content: str, attempt: Rollout, correct: bool) -> bool:  # noqa: ARG001
    """The completion begins with the content's numbers, except the last one, which may be cut."""
    hinted = _NUMBER.findall(content)[:-1]
    return _NUMBER.findall(completion)[: len(hinted)] == hinted


def same_verdict(completion: str, content: str, attempt: Rollout, correct: bool) -> bool:  # noqa: ARG001
    """The completion has the attempt's verdict."""
    return correct == attempt.correct


@dataclass(frozen=True)
class Hint:
    """A hint: name, wording, content for an attempt of a group, and the test of following it."""

    name: str
    template: str
    content: Callable[[Group, Rollout], str]
    follows: Follows = same_ending


def hints_of(processing_class: Any, wordings: Mapping[str, tuple[str, str]]) -> list[Hint]:
    """Every hint of a method, and no hint.

    Args:
        processing_class: Tokenizer or processor, to cut prefixes and suffixes.
        wordings: (hint with an answer, hint with a longer text) by name.
    """

    def part(name: Literal["prefix", "suffix"], group: Group, attempt: Rollout) -> str:  # noqa: ARG001
        return cut_text(processing_class, attempt.text, name, HintOptions.hint_max_tokens)

    hints = []
    for wording, (of_answer, of_text) in wordings.items():
        hints += [
            Hint(f"answer, {wording}", of_answer, lambda g, a: a.answer or ""),  # noqa: ARG005
            Hint(f"rollout, {wording}", of_text, lambda g, a: a.text),  # noqa: ARG005
            Hint(
                f"solution or incorrect rollout, {wording}", of_text, lambda g, a: g.solution if a.correct else a.text
            ),
            Hint(f"prefix, {wording}", of_text, partial(part, "prefix"), same_beginning),
            Hint(f"suffix, {wording}", of_text, partial(part, "suffix")),
        ]
    return [
        *hints,
        Hint("rollout asserted correct (rlcsd)", RLCSD_HINT, lambda g, a: asserted(a.text, a.answer or "")),  # noqa: ARG005
        Hint(
            "verdict (cscr)",
            CSCROptions.hint_template,
            lambda g, a: SAID_CORRECT if a.correct else SAID_WRONG,  # noqa: ARG005
            same_verdict,
        ),
        Hint("no hint", "{answer}", lambda g, a: "", same_verdict),  # noqa: ARG005
    ]


def hint_contents_followed(
    model: Any,
    processing_class: Any,
    groups: Sequence[Group],
    wordings: Mapping[str, tuple[str, str]],
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """The share of completions that follow each hint. Each group gives two hinted completions.

    Args:
        model, processing_class: The policy.
        groups: Groups with correct and incorrect rollouts. Hints are about the first correct rollout (`correct`) and
            about the rollout with the most common incorrect answer (`incorrect`).
        wordings: As for `hints_of`.
        sampling: Sampling of the completions.
    """
    cases: dict[str, list[tuple[Group, Rollout]]] = {"correct": [], "incorrect": []}
    for group in groups:
        first = next((attempt for attempt in group.rollouts if attempt.correct), None)
        sources = choose_references(group.rollouts, group.solution, rule="most_common")[0].sources
        if first is not None and sources:
            cases["correct"].append((group, first))
            cases["incorrect"].append((group, group.rollouts[sources[0]]))
    rows = []
    for hint in hints_of(processing_class, wordings):
        row: dict[str, Any] = {"name": hint.name}
        for side, chosen in cases.items():
            contents = [hint.content(group, attempt) for group, attempt in chosen]
            conversations = [
                add_hint(group.messages, without_marks(fill_hint(hint.template, content)))
                for (group, _), content in zip(chosen, contents, strict=True)
            ]
            texts = answer_texts(processing_class, sample(model, processing_class, conversations, sampling), sampling)
            completions = [[{"role": "assistant", "content": text}] for text in texts]
            rewards = figures_reward(completions, [group.row["solution"] for group, _ in chosen])
            followed = [
                float(hint.follows(text, content, attempt, reward == 1.0))
                for text, content, (_, attempt), reward in zip(texts, contents, chosen, rewards, strict=True)
            ]
            row[side] = Accuracy(tuple(followed)).as_dict() if followed else None
        rows.append(row)
    return rows
