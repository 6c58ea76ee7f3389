"""Evaluate a policy on held-out problems: sample completions, judge them, and measure their entropy.

Greedy and sampled accuracy differ: training that only sharpens the policy raises sampled accuracy, as a lower
temperature would, but not greedy accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from ..methods.token_labels import token_labels_of
from ..references.groups import Ids
from ..scoring.entropy import token_entropies
from ..scoring.prompts import PromptEncoder, token_texts
from ..scoring.requests import Request
from .accuracy import Entropy, Evaluation
from .checks import check_image_sizes
from .errors import DatasetError
from .images import broken_images_named
from .rewards import answer_reward
from .sampling import (
    RewardFunc,
    Sampling,
    answer_texts,
    check_special_tokens,
    conversation_of,
    end_tokens,
    sample,
    seeded,
    verdicts,
)

_CONTENT = ("mistake", "decision")


@dataclass(frozen=True)
class Share:
    """One process's share of the work.

    Attributes:
        index: Rank of the process.
        count: Number of processes.
        gather: Concatenates the lists of all processes, on every process. All processes call it together.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = lambda values: values

    def of(self, work: Sequence[Any]) -> tuple[list[Any], int]:
        """This process's items, and how many more another process has."""
        own = list(work[self.index :: self.count])
        return own, -(-len(work) // self.count) - len(own)


@dataclass(frozen=True)
class _Completion:
    """One completion of a problem; `sample` counts from 0."""

    problem: int
    sample: int
    ids: Ids
    text: str
    correct: bool | None


def evaluate(
    model: PreTrainedModel,
    processing_class: Any,
    dataset: Dataset,
    sampling: Sampling,
    *,
    samples: int = 1,
    seed: int = 0,
    reward_func: RewardFunc | None = None,
    threshold: float = 0.5,
    on_progress: Callable[[int], None] | None = None,
    share: Share | None = None,
) -> Evaluation:
    """Sample completions of every problem, and judge them.

    Args:
        model: The policy.
        processing_class: Its tokenizer or processor.
        dataset: With TRL's columns `prompt`, `solution` and, for images, `image` or `images`.
        sampling: How completions are sampled. Temperature 0 gives one completion per problem.
        samples: Completions per problem.
        seed: Seed of sampling. The caller's random state is kept.
        reward_func: The verifier, a reward function as TRL calls it. None: `answer_reward`.
        threshold: The smallest reward of a correct completion. A reward of None is no verdict: the completion counts
            as incorrect, and in `missing`.
        on_progress: Called with the number of completions so far.
        share: This process's share; all processes return the same. Sampled completions, unlike greedy ones, depend on
            the number of processes.

    Returns:
        Accuracy and, above temperature 0, entropy at the tokens of the first completion of each problem.

    Raises:
        DatasetError: If the policy cannot take a problem, or the verifier gave no verdict at all.
    """
    judge = reward_func or answer_reward
    check_special_tokens(dataset["prompt"], processing_class, "the problems")
    check_image_sizes(dataset, processing_class, "the problems")
    if sampling.temperature == 0:
        samples = 1
    share = share or Share()
    own, missing_batches = share.of(_batches(len(dataset), samples, sampling.batch_size))
    found: list[_Completion] = []
    with seeded(seed + share.index):
        for batch in own:
            problems = sorted({problem for problem, _ in batch})
            with broken_images_named(dataset, "the problems", problems):
                rows = {problem: dataset[problem] for problem in problems}
            conversations = {problem: conversation_of(row, processing_class) for problem, row in rows.items()}
            completions = sample(model, processing_class, [conversations[problem] for problem, _ in batch], sampling)
            texts = answer_texts(processing_class, completions, sampling)
            rewards = verdicts(judge, [rows[problem] for problem, _ in batch], texts, completions)
            for (problem, number), ids, text, reward in zip(batch, completions, texts, rewards, strict=True):
                found.append(_Completion(problem, number, ids, text, None if reward is None else reward >= threshold))
            if on_progress:
                on_progress(len(found))
        for _ in range(missing_batches):  # the model's forward passes may be collective: all processes run as many
            sample(model, processing_class, [conversation_of(dataset[0], processing_class)], sampling)
    entropies: tuple[Entropy | None, Entropy | None] = (None, None)
    if sampling.temperature > 0:
        first = {one.problem: one.ids for one in found if one.sample == 0}
        entropies = entropy_of(model, processing_class, dataset, first, sampling, share)
    found = sorted(share.gather(found), key=lambda one: (one.problem, one.sample))
    correct = [0] * len(dataset)
    for one in found:
        correct[one.problem] += bool(one.correct)
    missing = sum(one.correct is None for one in found)
    if found and missing == len(found):
        name = getattr(judge, "__name__", type(judge).__name__)
        solution = str(dataset[found[0].problem].get("solution"))
        raise DatasetError(
            f"{name} gave no verdict on any of {missing} completions, so there is no accuracy. The first solution is "
            f"{solution[:80]!r}, its completion ends with {found[0].text[-80:]!r}. Use --reward_funcs answer_reward or "
            "another function, or correct the solutions"
        )
    ends = end_tokens(model, processing_class)
    clipped = sum(not one.ids or one.ids[-1] not in ends for one in found)
    texts = [one.text for one in found]
    return Evaluation(sampling.temperature, samples, tuple(correct), texts, missing, *entropies, clipped)


def _batches(problems: int, samples: int, size: int) -> list[list[tuple[int, int]]]:
    """Batches of (problem, sample): the first sample of all problems, then the others by problem.

    The first samples do not depend on the number of samples. The others share the forward pass of their prompt.
    """
    first = [(problem, 0) for problem in range(problems)]
    others = [(problem, number) for problem in range(problems) for number in range(1, samples)]
    return [order[start : start + size] for order in (first, others) for start in range(0, len(order), size)]


def entropy_of(
    model: PreTrainedModel,
    processing_class: Any,
    dataset: Dataset,
    completions: Mapping[int, Ids],
    sampling: Sampling,
    share: Share | None = None,
) -> tuple[Entropy | None, Entropy | None]:
    """The policy's entropy at one completion of each problem: at all tokens, and at those that carry the solution.

    The temperature of `sampling` applies to the distributions; `top_p` and `top_k` do not.
    """
    encoder = PromptEncoder(processing_class, sampling.chat_template_kwargs or {})
    indices = [index for index, ids in completions.items() if ids]
    rows = [dataset[index] for index in indices]
    prompts = [encoder.prompt(conversation_of(row, processing_class)) for row in rows]
    requests = [Request(place, prompts[place].ids, completions[index]) for place, index in enumerate(indices)]
    entropies = token_entropies(model, prompts, requests, temperature=sampling.temperature) if requests else []
    labels = token_labels_of(dataset[0])
    sums: list[tuple[int, tuple[float, int], tuple[float, int]]] = []
    for index, row, request, values in zip(indices, rows, requests, entropies, strict=True):
        kinds = labels.kinds(row, token_texts(processing_class, request.completion)) if labels else []
        content = [value for value, kind in zip(values.tolist(), kinds, strict=False) if kind in _CONTENT]
        sums.append((index, (sum(values.tolist()), len(values)), (sum(content), len(content))))
    gathered = sorted((share or Share()).gather(sums))
    return _entropy([everything for _, everything, _ in gathered]), _entropy([content for *_, content in gathered])


def _entropy(sums: Sequence[tuple[float, int]]) -> Entropy | None:
    """From (sum [nats], number of tokens) of each completion; None without tokens."""
    if not any(count for _, count in sums):
        return None
    return Entropy(tuple(total for total, _ in sums), tuple(count for _, count in sums))
