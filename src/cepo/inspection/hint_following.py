"""Hint following: does the model answer as its hint says? If not, evidence carries no information.

This holds for every method.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..data.accuracy import Accuracy
from ..data.sampling import Sampling, answer_texts, sample
from ..methods.options import MethodOptions
from ..references.equality import same_answer
from ..references.extraction import final_answer, reference_answer
from ..references.groups import Group
from ..references.hints import add_hint, fill_hint
from ..scoring.prompts import without_marks
from .inspect import Credit

# A hint, and the answer of a model that follows it.
Case = tuple[str, str]


def hint_cases(group: Group, credit: Sequence[Credit], options: MethodOptions) -> dict[str, Case]:
    """The first hint with r+ (`positive`) and the first with r- (`negative`) among a group's rollouts.

    A content that states neither r+ nor a rejected rollout's answer has no expected answer and is left out.
    """
    extractor = options.answer_extractor
    correct = [reference_answer(group.solution, extractor)]
    rejected = [attempt.answer for attempt in group.attempts if attempt.correct is False and attempt.answer]
    template = options.hint_template or "{answer}"
    cases: dict[str, Case] = {}
    for one in credit:
        references = one.references
        for side, contents, answers in (
            ("positive", (references.positive,), correct),
            ("negative", references.negatives, rejected),
        ):
            for content in contents:
                hint, expected = fill_hint(template, content), reference_answer(content, extractor)
                if hint in one.contexts and any(same_answer(expected, answer) for answer in answers):
                    cases.setdefault(side, (hint, expected))
    return cases


def hint_following(
    model: PreTrainedModel,
    processing_class: Any,
    groups: Sequence[Group],
    credit: Sequence[Sequence[Credit]],
    options: MethodOptions,
    sampling: Sampling,
) -> dict[str, dict[str, Any]]:
    """The share of greedy answers that agree with the hint, and how often the same answer comes without a hint.

    Args:
        model, processing_class: The policy.
        groups: The groups; of each, one hint with r+ and one with r-.
        credit: The credit of each group's rollouts, whose contexts are the hints.
        options: Of the method.
        sampling: Length and batch size of the answers.

    Returns:
        For `positive` (hints with r+) and `negative` (r-): `hinted` and `unhinted`, each a share with its interval;
        None where no hint has an expected answer.
    """
    greedy = replace(sampling, temperature=0.0)
    cases = [hint_cases(group, of_group, options) for group, of_group in zip(groups, credit, strict=True)]
    # (index of the group, side): the conversation; side "" is the prompt without a hint.
    asked = {
        (index, side): add_hint(group.messages, without_marks(hint)) if hint else group.messages
        for index, (group, of_group) in enumerate(zip(groups, cases, strict=True))
        for side, hint in [("", ""), *((side, hint) for side, (hint, _) in of_group.items())]
        if of_group
    }
    ids = sample(model, processing_class, list(asked.values()), greedy)
    texts = answer_texts(processing_class, ids, greedy)
    answers = {key: final_answer(text, options.answer_extractor) for key, text in zip(asked, texts, strict=True)}

    def share(side: str, *, hinted: bool) -> dict[str, Any] | None:
        given = [
            (answers[index, side if hinted else ""], of_group[side][1])
            for index, of_group in enumerate(cases)
            if side in of_group
        ]
        followed = tuple(float(answer is not None and same_answer(answer, expected)) for answer, expected in given)
        return Accuracy(followed).as_dict() if followed else None

    return {
        side: {"hinted": share(side, hinted=True), "unhinted": share(side, hinted=False)}
        for side in ("positive", "negative")
    }
