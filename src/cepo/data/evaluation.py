"""Held-out accuracy: answers, the verifier's word on them, and every number with its interval.

A policy is asked at temperature 0 (greedy: what it believes) and above (what training samples). Sharpening alone moves
the second, and a lower temperature does so for nothing; only a policy that has learned something moves the first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.stats import norm, t
from transformers import PreTrainedModel, ProcessorMixin

from ..methods.token_labels import token_labels_of
from ..references.groups import Ids
from ..scoring.entropy import token_entropies
from ..scoring.prompts import PromptEncoder, token_texts
from ..scoring.requests import Request
from .checks import DatasetError, check_image_sizes
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
RIGHT = 0.5  # a reward of this and more counts as a right answer


class VerdictError(DatasetError):
    """The verifier has nothing to say of any answer."""


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers.

    Attributes:
        values: Of each problem: the share of its answers that are right, or an estimate of its pass@k.
        samples: Answers to each problem.
    """

    values: tuple[float, ...]
    samples: int = 1

    @property
    def value(self) -> float:
        return fmean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy on problems like these.

        Wilson's, for as many independent answers as have the variance of the problems' values, and no more than there
        are: of one answer to each problem, as many as there are problems.
        """
        number, mean = len(self.values), self.value
        spread = mean * (1 - mean)
        squares = sum((value - mean) ** 2 for value in self.values)
        # n - 1 would make the interval of single answers wider than Wilson's by a hair.
        variance = squares / (number if self.samples == 1 else max(1, number - 1))
        most = number * self.samples
        answers: float = number  # nothing varies, within problems or between them
        if spread > 0:
            answers = min(most, number * spread / variance) if variance > 0 else most
        z = float(norm.ppf(0.975))
        centre = (mean + z * z / (2 * answers)) / (1 + z * z / answers)
        half = z / (1 + z * z / answers) * math.sqrt(spread / answers + z * z / (4 * answers**2))
        # At 0 and 1 rounding would leave the mean itself outside.
        return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"accuracy": self.value, "low": low, "high": high, "problems": len(self.values)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}]"


@dataclass(frozen=True)
class Entropy:
    """Mean entropy of the distributions from which tokens were drawn.

    Attributes:
        sums: Of each answer, over its tokens [nats].
        counts: Of each answer, how many tokens.
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def value(self) -> float:
        """[nats a token]"""
        return sum(self.sums) / sum(self.counts)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval over answers: Student's t of the ratio of two sums."""
        number = len(self.sums)
        if number < 2:
            return math.nan, math.nan
        residuals = np.asarray(self.sums) - self.value * np.asarray(self.counts)
        error = math.sqrt(float((residuals**2).sum()) * number / (number - 1)) / sum(self.counts)
        half = float(t.ppf(0.975, number - 1)) * error
        return self.value - half, self.value + half

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"nats": self.value, "low": low, "high": high, "tokens": sum(self.counts)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """What a policy answers at one temperature.

    Attributes:
        temperature: Of sampling; 0 is greedy.
        samples: Answers to each problem.
        right: Of each problem, how many of them are right.
        answers: The texts, one problem's after the other's.
        missing: How many of them the verifier gave no verdict; they count as wrong.
        entropy: At all tokens; None for greedy answers, which are drawn from nothing.
        content_entropy: At the tokens that the task knows to carry the solution; None where it knows none.
        clipped: How many answers the length limit cut off.
    """

    temperature: float
    samples: int
    right: tuple[int, ...]
    answers: list[str]
    missing: int = 0
    entropy: Entropy | None = None
    content_entropy: Entropy | None = None
    clipped: int = 0

    @property
    def accuracy(self) -> Accuracy:
        """Of one answer."""
        return Accuracy(tuple(right / self.samples for right in self.right), self.samples)

    def pass_at(self, k: int) -> Accuracy:
        """The chance that one of k answers is right, without bias: 1 - C(n - c, k) / C(n, k) for c right ones of n.

        Raises:
            ValueError: If there are fewer than k answers to a problem.
        """
        if not 1 <= k <= self.samples:
            raise ValueError(f"pass@{k} needs at least {k} answers to each problem, and there are {self.samples}")
        chances = math.comb(self.samples, k)
        passed = tuple(1 - math.comb(self.samples - right, k) / chances for right in self.right)
        return Accuracy(passed, self.samples // k)

    @property
    def without_verdict(self) -> str:
        """What is to be said of answers without a verdict; empty if there is none."""
        return f"{self.missing} of {len(self.answers)} without a verdict" if self.missing else ""

    @property
    def cut_off(self) -> str:
        """What is to be said of answers that the length limit cut off; empty if there is none."""
        return f"{self.clipped} of {len(self.answers)} cut off by the length limit" if self.clipped else ""

    def as_dict(self) -> dict[str, Any]:
        found = {"temperature": self.temperature, "samples": self.samples, **self.accuracy.as_dict()}
        found["missing_verdicts"], found["clipped"] = self.missing, self.clipped
        if self.samples > 1:
            found["pass_at"] = {"k": self.samples, **self.pass_at(self.samples).as_dict()}
        for name, entropy in (("entropy", self.entropy), ("content_entropy", self.content_entropy)):
            if entropy is not None:
                found[name] = entropy.as_dict()
        return found


def _alone(found: list[Any]) -> list[Any]:
    return found


@dataclass(frozen=True)
class Share:
    """One process's share of work that several do together.

    Attributes:
        index: Of the process.
        count: Of processes.
        gather: Everyone's lists in one, the same on every process; all call it together.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = _alone

    def of(self, work: Sequence[Any]) -> tuple[list[Any], int]:
        """This process's part of the work, and how many more parts some other process has."""
        own = list(work[self.index :: self.count])
        return own, -(-len(work) // self.count) - len(own)


def evaluate(
    model: PreTrainedModel,
    processing_class: Any,
    dataset: Dataset,
    sampling: Sampling,
    *,
    samples: int = 1,
    seed: int = 0,
    reward_func: RewardFunc | None = None,
    threshold: float = RIGHT,
    on_progress: Callable[[int], None] | None = None,
    share: Share | None = None,
) -> Evaluation:
    """Ask a policy every problem and let the verifier judge what it answers.

    Args:
        model: The policy.
        processing_class: Its tokenizer, or its processor if it reads images.
        dataset: With TRL's columns `prompt`, `solution` and, for images, `image` or `images`.
        sampling: How answers are sampled; at temperature 0 one answer to each problem is all there is.
        samples: Answers to each problem.
        seed: Of sampling. The caller's random state is left as it was.
        reward_func: The verifier, a reward function as TRL calls it; None: `answer_reward`.
        threshold: A reward of this and more is right. None is no verdict: wrong, and counted.
        on_progress: Called with the number of answers that are there.
        share: This process's, where several ask together; all get the same result. Sampled answers, but not greedy
            ones, depend on the number of processes.

    Returns:
        The accuracy, and, above temperature 0, the entropy at the tokens of the first answer to each problem.

    Raises:
        VerdictError: If the verifier gave no verdict at all.
    """
    judge = reward_func or answer_reward
    check_special_tokens(dataset["prompt"], processing_class, "the problems")
    check_image_sizes(dataset, processing_class, "the problems")
    if sampling.temperature == 0:
        samples = 1
    share = share or Share()
    # All problems once: the first answers are the same, however many follow. Then a problem's others together, whose
    # prompt is run once for them.
    orders = [
        [(problem, 0) for problem in range(len(dataset))],
        [(problem, answer) for problem in range(len(dataset)) for answer in range(1, samples)],
    ]
    batches = [
        order[start : start + sampling.batch_size]
        for order in orders
        for start in range(0, len(order), sampling.batch_size)
    ]
    own, spare = share.of(batches)
    asked: list[_Asked] = []
    with seeded(seed + share.index):
        for batch in own:
            problems = sorted({problem for problem, _ in batch})
            with broken_images_named(dataset, "the problems", problems):
                rows = {problem: dataset[problem] for problem in problems}
            conversations = {problem: conversation_of(row, processing_class) for problem, row in rows.items()}
            completions = sample(model, processing_class, [conversations[problem] for problem, _ in batch], sampling)
            answers = answer_texts(processing_class, completions, sampling)
            judged = verdicts(judge, [rows[problem] for problem, _ in batch], answers, completions)
            for (problem, answer), ids, text, reward in zip(batch, completions, answers, judged, strict=True):
                asked.append(_Asked(problem, answer, ids, text, None if reward is None else reward >= threshold))
            if on_progress:
                on_progress(len(asked))
        for _ in range(spare):  # for the others' sake, who may gather weights or count tokens together
            sample(model, processing_class, [conversation_of(dataset[0], processing_class)], sampling)
    entropies: tuple[Entropy | None, Entropy | None] = (None, None)
    if sampling.temperature > 0:
        first = {one.problem: one.ids for one in asked if one.answer == 0}
        entropies = entropy_of(model, processing_class, dataset, first, sampling, share)
    everyone = sorted(share.gather(asked), key=lambda one: (one.problem, one.answer))
    right = [0] * len(dataset)
    for one in everyone:
        right[one.problem] += bool(one.right)
    missing = sum(one.right is None for one in everyone)
    if everyone and missing == len(everyone):
        name, first = getattr(judge, "__name__", type(judge).__name__), everyone[0]
        raise VerdictError(
            f"{name} gave no verdict on any of {missing} answers, so there is no accuracy. To the solution "
            f"{str(dataset[first.problem].get('solution'))[:80]!r} the policy answered {first.text[-80:]!r}. "
            "Take --reward_funcs answer_reward or another function, or correct the solutions"
        )
    texts = [one.text for one in everyone]
    ends = end_tokens(model, processing_class)
    clipped = sum(not one.ids or one.ids[-1] not in ends for one in everyone)
    return Evaluation(sampling.temperature, samples, tuple(right), texts, missing, *entropies, clipped)


@dataclass(frozen=True)
class _Asked:
    """One answer to one problem."""

    problem: int
    answer: int
    ids: Ids
    text: str
    right: bool | None


def entropy_of(
    model: PreTrainedModel,
    processing_class: Any,
    dataset: Dataset,
    completions: Mapping[int, Ids],
    sampling: Sampling,
    share: Share | None = None,
) -> tuple[Entropy | None, Entropy | None]:
    """The policy's entropy at one answer to each problem: at all tokens, and at those that carry the solution.

    Args:
        model: The policy.
        processing_class: Its tokenizer or processor.
        dataset: The problems.
        completions: Of problems by their index, the answers' token ids, sampled as `sampling` has it.
        sampling: Its temperature is that of the distributions. `top_p` and `top_k` are not applied to them.
        share: This process's, where several have answers.
    """
    images = isinstance(processing_class, ProcessorMixin)
    encoder = PromptEncoder(processing_class, images, sampling.chat_template_kwargs or {})
    indices = [index for index, ids in completions.items() if ids]
    rows = [dataset[index] for index in indices]
    prompts = [encoder.prompt(conversation_of(row, processing_class)) for row in rows]
    requests = [Request(place, prompts[place].ids, completions[index]) for place, index in enumerate(indices)]
    found = token_entropies(model, prompts, requests, temperature=sampling.temperature) if requests else []
    known = token_labels_of(dataset[0])
    sums: list[tuple[int, tuple[float, int], tuple[float, int]]] = []
    for index, row, request, values in zip(indices, rows, requests, found, strict=True):
        texts = token_texts(processing_class, request.completion)
        content = [] if known is None else [kind in _CONTENT for kind in known.kinds(row, texts)]
        kept = [value for value, counted in zip(values.tolist(), content, strict=False) if counted]
        sums.append((index, (sum(values.tolist()), len(values)), (sum(kept), len(kept))))
    everyone = sorted((share or Share()).gather(sums))
    return _entropy([everything for _, everything, _ in everyone]), _entropy([content for *_, content in everyone])


def _entropy(sums: Sequence[tuple[float, int]]) -> Entropy | None:
    """Of (sum [nats], tokens) of each answer; None if there is no token."""
    if not any(count for _, count in sums):
        return None
    return Entropy(tuple(total for total, _ in sums), tuple(count for _, count in sums))


def evaluate_accuracy(
    model: PreTrainedModel,
    processing_class: Any,
    dataset: Dataset,
    *,
    max_completion_length: int = 256,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    reward_func: RewardFunc | None = None,
) -> tuple[Accuracy, list[str]]:
    """One answer to each problem: `evaluate` for those who want the accuracy alone.

    Returns:
        The accuracy, and the answers as text.
    """
    sampling = Sampling(max_completion_length, temperature, batch_size=batch_size)
    found = evaluate(model, processing_class, dataset, sampling, seed=seed, reward_func=reward_func)
    return found.accuracy, found.answers
