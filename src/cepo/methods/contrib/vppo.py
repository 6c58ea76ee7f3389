"""VPPO (arXiv 2601.18984): no teacher; the prefix before an incorrect rollout's first error has part of the value.

The value of a token is 1 on a correct rollout. On an incorrect one it is `prefix_value` up to `prefix_margin` tokens
before the first error (the kept prefix), and 0 after. The value of a rollout is the mean over its tokens, and

    A_t = v_t - mean of the group's values

without a division by the standard deviation, so that a group without a correct rollout still has a gradient. The first
error comes from a reward function (`first_error_reward`) or from the token labels of the task; without an error, it is
the end.

Open in the paper, and chosen here: a rollout without a verdict is not trained on and does not count in the mean; tool
results count in a rollout's length; the prompt's length, as the margin, is that of its text. Completions shorter than
their prompts then keep no prefix: `prefix_margin: 0` keeps every token before the error, and `cepo/credit/changed`
shows whether a prefix is kept.
"""

from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean

from ..method import Method, MethodDoc
from ..option_fields import option
from ..options import FirstErrorOptions
from ..stages import LabeledGroup
from ..token_advantages import as_advantages
from ..token_labels import token_labels_of


@dataclass(kw_only=True)
class VPPOOptions(FirstErrorOptions):
    """The paper's values."""

    prefix_value: float = option(0.5, "Value of a token of the kept prefix.", bounds={">=": 0, "<=": 1})
    prefix_margin: int | None = option(
        None,
        "Tokens between the kept prefix and the first error; None: the length of the prompt's text, which keeps steps "
        "from being inflated.",
        bounds={">=": 0},
    )
    nonnegative_prefix: bool = option(
        False, "Token advantages of a kept prefix are at least 0, as for instruction-tuned models."
    )

    def dataset_problem(self, columns: Collection[str]) -> str | None:
        if self.first_error_reward is not None or token_labels_of(columns) is not None:
            return None
        return "it needs first-error positions; set first_error_reward, or use a task with token labels, as figures"


def prefix_advantages(group: LabeledGroup, options: VPPOOptions) -> list[list[float]]:
    """A_t of each token of each rollout of a group."""
    margin = group.prompt_tokens if options.prefix_margin is None else options.prefix_margin
    labels = token_labels_of(group.row)
    kept: list[int] = []  # tokens of the kept prefix
    values: list[list[float]] = []
    for tokens, rollout in zip(group.tokens, group.rollouts, strict=True):
        if rollout.correct is not False:
            kept.append(0)
            values.append([1.0] * len(tokens) if rollout.correct else [0.0] * len(tokens))
            continue
        error = rollout.first_error
        if error is None and options.first_error_reward is None and labels is not None:
            error = labels.first_error(group.row, tokens)
        prefix = max(0, (len(tokens) if error is None else min(error, len(tokens))) - margin)
        kept.append(prefix)
        values.append([options.prefix_value] * prefix + [0.0] * (len(tokens) - prefix))
    judged = [fmean(v) for v, rollout in zip(values, group.rollouts, strict=True) if rollout.correct is not None and v]
    baseline = fmean(judged) if judged else 0.0

    def advantages(place: int) -> list[float]:
        if group.rollouts[place].correct is None:
            return [0.0] * len(values[place])
        floor = kept[place] if options.nonnegative_prefix else 0
        found = [value - baseline for value in values[place]]
        return [max(0.0, value) for value in found[:floor]] + found[floor:]

    return [advantages(place) for place in range(len(values))]


METHOD = Method(
    name="vppo",
    doc=MethodDoc(
        summary="no teacher: an incorrect rollout has half of a correct one's value until just before its first error",
        source="arXiv 2601.18984",
        formula="v_t - mean v; v_t = 1 if correct; if incorrect 1/2 up to a margin before the first error, then 0",
        hints="no teacher",
        sign="no",
        bounds="-1 <= A_t <= 1",
        passes="0",
    ),
    options=VPPOOptions,
    token_values=prefix_advantages,
    assign_credit=as_advantages,
    evidence_is_signed=False,
)
