"""Hint following of the shipped policy for every content and wording that a method's hint may have."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from cepo.data.evaluation import Accuracy
from cepo.data.sampling import Sampling, answer_texts, sample
from cepo.methods.contrib.cscr import SAID_CORRECT, SAID_WRONG, CSCROptions
from cepo.methods.options import HintOptions
from cepo.methods.rlcsd import HINT_TEMPLATE as RLCSD_HINT
from cepo.methods.rlcsd import asserted
from cepo.references.equality import same_answer
from cepo.references.extraction import final_answer
from cepo.references.groups import Attempt, Group
from cepo.references.hints import add_hint, fill_hint
from cepo.references.negatives import choose_references
from cepo.scoring.prompts import cut_text, without_marks
from cepo.tasks.figures import figures_reward

_NUMBER = re.compile(r"\d+")
# (completion, content of the hint, attempt that the hint is about, whether the completion is correct) -> whether it
# follows the hint.
Follows = Callable[[str, str, Attempt, bool], bool]


def ends_alike(completion: str, content: str, attempt: Attempt, correct: bool) -> bool:  # noqa: ARG001
    """It ends with the attempt's answer."""
    given = final_answer(completion)
    return given is not None and attempt.answer is not None and same_answer(given, attempt.answer)


def begins_alike(completion: str, content: str, attempt: Attempt, correct: bool) -> bool:  # noqa: ARG001
    """It begins with the content's numbers, of which the last may be cut."""
    hinted = _NUMBER.findall(content)[:-1]
    return _NUMBER.findall(completion)[: len(hinted)] == hinted


def turns_out_alike(completion: str, content: str, attempt: Attempt, correct: bool) -> bool:  # noqa: ARG001
    """It is correct if the attempt is, and incorrect otherwise."""
    return correct == attempt.correct


@dataclass(frozen=True)
class Hint:
    """A hint: its name, its wording, its content about an attempt of a group, and when a completion follows it."""

    name: str
    template: str
    content: Callable[[Group, Attempt], str]
    follows: Follows = ends_alike


def hints_of(processing_class: Any, wordings: Mapping[str, tuple[str, str]]) -> list[Hint]:
    """Every hint that a method may give, and none.

    Args:
        processing_class: Cuts prefixes and suffixes.
        wordings: By name, the wording for an answer and for a text.
    """

    def part(name: Literal["prefix", "suffix"], group: Group, attempt: Attempt) -> str:  # noqa: ARG001
        return cut_text(processing_class, attempt.text, name, HintOptions.hint_max_tokens)

    hints = []
    for wording, (of_answer, of_text) in wordings.items():
        hints += [
            Hint(f"answer, {wording}", of_answer, lambda g, a: a.answer or ""),  # noqa: ARG005
            Hint(f"rollout, {wording}", of_text, lambda g, a: a.text),  # noqa: ARG005
            Hint(f"solution or wrong rollout, {wording}", of_text, lambda g, a: g.solution if a.correct else a.text),
            Hint(f"prefix, {wording}", of_text, partial(part, "prefix"), begins_alike),
            Hint(f"suffix, {wording}", of_text, partial(part, "suffix")),
        ]
    return [
        *hints,
        Hint("rollout said to be right (rlcsd)", RLCSD_HINT, lambda g, a: asserted(a.text, a.answer or "")),  # noqa: ARG005
        Hint(
            "that it is right, or wrong (cscr)",
            CSCROptions.hint_template,
            lambda g, a: SAID_CORRECT if a.correct else SAID_WRONG,  # noqa: ARG005
            turns_out_alike,
        ),
        Hint("nothing", "{answer}", lambda g, a: "", turns_out_alike),  # noqa: ARG005
    ]


def hint_contents_followed(
    model: Any,
    processing_class: Any,
    groups: Sequence[Group],
    wordings: Mapping[str, tuple[str, str]],
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """The share of completions that follow each hint, one for each group and side.

    Args:
        model, processing_class: The policy.
        groups: Groups with correct and incorrect rollouts. Of each, hints are about its first correct rollout
            (`right`) and about the rollout with the most common wrong answer (`wrong`).
        wordings: Of `hints_of`.
        sampling: Of the completions; see `seeded`.
    """
    cases: dict[str, list[tuple[Group, Attempt]]] = {"right": [], "wrong": []}
    for group in groups:
        first = next((attempt for attempt in group.attempts if attempt.correct), None)
        sources = choose_references(group.attempts, group.solution, rule="most_common")[0].sources
        if first is not None and sources:
            cases["right"].append((group, first))
            cases["wrong"].append((group, group.attempts[sources[0]]))
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
