"""Hint following: how often the model gives its hint's answer. If it ignores hints, evidence is uninformative."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..data.accuracy import Accuracy
from ..data.sampling import Sampling, answer_texts, sample
from ..references.equality import same_answer
from ..references.extraction import final_answer, reference_answer
from ..references.hints import add_hint
from ..scoring.prompts import without_marks
from .view_model import InspectedGroup, Variant

SIDES = ("positive", "negative")


def hint_cases(group: InspectedGroup, variant: Variant) -> dict[str, tuple[str, str]]:
    """A group's first hint with r+ (`positive`) and first hint with r- (`negative`), each with the expected answer.

    Hints whose content contains neither r+ nor a rejected rollout's answer are left out.
    """
    extractor = variant.options.answer_extractor
    correct = [reference_answer(group.group.solution, extractor)]
    rejected = [rollout.answer for rollout in group.group.rollouts if rollout.correct is False and rollout.answer]
    cases: dict[str, tuple[str, str]] = {}
    for credit in group.credit(variant):
        contents = [("positive", credit.references.positive, correct)]
        contents += [("negative", content, rejected) for content in credit.references.negatives]
        for side, content, answers in contents:
            hint, expected = variant.options.hint(content), reference_answer(content, extractor)
            if hint in credit.contexts and any(same_answer(expected, answer) for answer in answers):
                cases.setdefault(side, (hint, expected))
    return cases


def hint_following(
    model: PreTrainedModel,
    processing_class: Any,
    groups: Sequence[InspectedGroup],
    variant: Variant,
    sampling: Sampling,
) -> dict[str, dict[str, Any]]:
    """Share of greedy answers equal to the hint's answer, and share of the same answer without a hint.

    Args:
        model, processing_class: The policy.
        groups: The inspected groups, with one hint with r+ and one with r- each.
        variant: The method of the hints.
        sampling: Length and batch size of the completions.

    Returns:
        For `positive` (hints with r+) and `negative` (r-): `hinted` and `unhinted`, each a share with its 95 %
        interval; None if no hint has an expected answer.
    """
    greedy = replace(sampling, temperature=0.0)
    extractor = variant.options.answer_extractor
    cases = [hint_cases(group, variant) for group in groups]
    # (index of the group, side) -> conversation; side "" has no hint.
    conversations = {
        (index, side): add_hint(group.group.messages, without_marks(hint)) if hint else group.group.messages
        for index, (group, of_group) in enumerate(zip(groups, cases, strict=True))
        for side, hint in [("", ""), *((side, hint) for side, (hint, _) in of_group.items())]
        if of_group
    }
    ids = sample(model, processing_class, list(conversations.values()), greedy)
    texts = answer_texts(processing_class, ids, greedy)
    answers = {key: final_answer(text, extractor) for key, text in zip(conversations, texts, strict=True)}

    def share(side: str, *, hinted: bool) -> dict[str, Any] | None:
        given = [
            (answers[index, side if hinted else ""], of_group[side][1])
            for index, of_group in enumerate(cases)
            if side in of_group
        ]
        followed = tuple(float(answer is not None and same_answer(answer, expected)) for answer, expected in given)
        return Accuracy(followed).as_dict() if followed else None

    return {side: {"hinted": share(side, hinted=True), "unhinted": share(side, hinted=False)} for side in SIDES}
