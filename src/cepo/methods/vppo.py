"""VPPO (arXiv 2601.18984): no teacher; what comes before a wrong rollout's first error is worth a part of a right one.

A token's value is 1 on a right rollout; on a wrong one it is `prefix_value` up to some tokens before the first error
(the kept prefix), and 0 from there on. A rollout's value is the mean over its tokens, and

    A_t = v_t - mean of the group's values

without a division by the standard deviation. A group in which all are wrong still learns. The first error comes from a
reward function (`first_error_reward`), or from what the task knows; where neither sees one, it is the end.

Open in the paper, and chosen here: a rollout without a verdict is not trained on and does not count in the mean; tokens
that a tool returned count in a rollout's length; the prompt's length, where it is the margin, is that of its text.
Answers not longer than their prompts then keep no prefix: `margin: 0` keeps all that comes before the error, and
`cepo/credit/changed` says whether anything is kept.
"""

from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean

from .method import LabeledGroup, Method, MethodDoc
from .shared_options import SharedOptions
from .token_advantages import as_advantages
from .token_labels import token_labels_of


@dataclass(frozen=True)
class Constants:
    """The paper's values.

    Attributes:
        prefix_value: Value of a token of the kept prefix of a wrong rollout, in [0, 1].
        margin: How many tokens before the first error the kept prefix ends; None: as many as the prompt's text has,
            which keeps steps from being inflated.
        only_raise: Token advantages of a kept prefix are not below 0, as for instruction-tuned models.
    """

    prefix_value: float = 0.5
    margin: int | None = None
    only_raise: bool = False

    def __post_init__(self):
        if not 0 <= self.prefix_value <= 1:
            raise ValueError(f"prefix_value must lie in [0, 1], got {self.prefix_value}")
        if self.margin is not None and self.margin < 0:
            raise ValueError(f"margin must not be negative, got {self.margin}")


def values_less_baseline(group: LabeledGroup, options: SharedOptions) -> list[list[float]]:
    """A_t of each token of each rollout of a group."""
    own: Constants = options.constants
    margin = group.prompt_tokens if own.margin is None else own.margin
    known = token_labels_of(group.row)
    kept: list[int | None] = []  # of a right rollout None
    values: list[list[float]] = []
    for tokens, attempt in zip(group.tokens, group.attempts, strict=True):
        error = attempt.first_error
        if attempt.correct is False and error is None and options.first_error_reward is None and known is not None:
            error = known.first_error(group.row, tokens)
        prefix = max(0, (len(tokens) if error is None else min(error, len(tokens))) - margin)
        kept.append(prefix if attempt.correct is False else None)
        right = [1.0] * len(tokens)
        values.append(right if attempt.correct else [own.prefix_value] * prefix + [0.0] * (len(tokens) - prefix))
    judged = [fmean(v) for v, attempt in zip(values, group.attempts, strict=True) if attempt.correct is not None and v]
    baseline = fmean(judged) if judged else 0.0

    def advantage(place: int, position: int) -> float:
        if group.attempts[place].correct is None:
            return 0.0
        found, prefix = values[place][position] - baseline, kept[place]
        return max(0.0, found) if own.only_raise and prefix is not None and position < prefix else found

    return [[advantage(place, position) for position in range(len(line))] for place, line in enumerate(values)]


def refuses(columns: Collection[str], options: SharedOptions) -> str | None:
    if options.first_error_reward is not None or token_labels_of(columns) is not None:
        return None
    return (
        "nobody knows where a rollout's first error is; name a reward function that does with first_error_reward, or "
        "train on a task that knows, as figures does"
    )


METHOD = Method(
    name="vppo",
    summary="no teacher: half of a right rollout's value until some way before the first error",
    source="arXiv 2601.18984",
    facts=MethodDoc(
        formula="v_t - mean v; v_t = 1 if right; if wrong 1/2 up to a margin before the first error, then 0",
        told="nothing",
        sign="no",
        bounds="-1 <= A_t <= 1",
        passes="0",
    ),
    options=frozenset({"first_error_reward"}),
    token_values=values_less_baseline,
    check_dataset=refuses,
    assign_credit=as_advantages,
    constants=Constants,
    evidence_is_signed=False,
)
