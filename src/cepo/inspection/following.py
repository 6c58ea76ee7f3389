"""Does the policy follow what it is told? Without that there is no evidence, whatever the hint."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..data.evaluation import RIGHT, Accuracy
from ..data.sampling import Sampling, answer_texts, sample, verdicts
from ..references.choosing import choose_references
from ..references.equality import same_answer
from ..references.extraction import final_answer
from ..references.groups import Attempt, Group
from ..references.hints import add_hint, fill_hint
from ..scoring.prompts import without_marks


@dataclass(frozen=True)
class Answered:
    """A completion under a hint.

    Attributes:
        attempt: The rollout of which the hint tells.
        told_right: Whether that is right.
        text: What stands in the hint.
        completion: The completion.
        correct: Whether it is right.
        extractor: How its answer is read.
    """

    attempt: Attempt
    told_right: bool
    text: str
    completion: str
    correct: bool
    extractor: str = "auto"

    def ends_alike(self) -> bool:
        """It ends with the answer of the attempt that it was told of."""
        given = final_answer(self.completion, self.extractor)
        return given is not None and self.attempt.answer is not None and same_answer(given, self.attempt.answer)

    def begins_alike(self) -> bool:
        """Its first numbers are those that it was told; the last one told may be cut."""
        told = _NUMBER.findall(self.text)[:-1]
        return _NUMBER.findall(self.completion)[: len(told)] == told

    def turns_out_alike(self) -> bool:
        """It is right when it was told so, and wrong when it was told so."""
        return self.correct == self.told_right


_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Told:
    """One thing to tell.

    Attributes:
        name: What it is, for people.
        template: The wording of the hint.
        text: (group, a right or wrong attempt of it) -> what stands in the hint.
        follows: Whether a completion follows it.
    """

    name: str
    template: str
    text: Callable[[Group, Attempt], str]
    follows: Callable[[Answered], bool] = Answered.ends_alike


def following(
    model: PreTrainedModel,
    processing_class: Any,
    groups: Sequence[Group],
    contents: Sequence[Told],
    sampling: Sampling,
    reward_func: Callable[..., Any],
    *,
    extractor: str = "auto",
    threshold: float = RIGHT,
) -> list[dict[str, Any]]:
    """The share of completions, sampled under a hint, that follow it.

    Args:
        model, processing_class: The policy.
        groups: Groups with right and wrong rollouts; of each, its first right rollout is told, and its most common
            wrong answer's.
        contents: What to tell.
        sampling: How completions are sampled; see `seeded`.
        reward_func: The verifier.
        extractor: How answers are read; see `final_answer`.
        threshold: A reward of this and more is right.

    Returns:
        For each content `name`, `right` and `wrong`: the share that followed with its interval; None without a case.
    """
    cases: dict[bool, list[tuple[Group, Attempt]]] = {True: [], False: []}
    for group in groups:
        right = next((attempt for attempt in group.attempts if attempt.correct), None)
        sources = choose_references(group.attempts, group.solution, rule="most_common", extractor=extractor)[0].sources
        if right is not None and sources:
            cases[True].append((group, right))
            cases[False].append((group, group.attempts[sources[0]]))
    rows = []
    for one in contents:
        row: dict[str, Any] = {"name": one.name}
        for side, chosen in cases.items():
            texts = [one.text(group, attempt) for group, attempt in chosen]
            hinted = [
                add_hint(group.messages, without_marks(fill_hint(one.template, text)))
                for (group, _), text in zip(chosen, texts, strict=True)
            ]
            ids = sample(model, processing_class, hinted, sampling)
            completions = answer_texts(processing_class, ids, sampling)
            judged = verdicts(reward_func, [dict(group.row) for group, _ in chosen], completions, ids)
            followed = [
                float(
                    one.follows(
                        Answered(attempt, side, text, completion, reward is not None and reward >= threshold, extractor)
                    )
                )
                for (_, attempt), text, completion, reward in zip(chosen, texts, completions, judged, strict=True)
            ]
            row["right" if side else "wrong"] = Accuracy(tuple(followed)).as_dict() if followed else None
        rows.append(row)
    return rows
