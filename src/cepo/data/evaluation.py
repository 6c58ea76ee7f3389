"""Held-out accuracy: sample answers, let the verifier judge them, and give the interval with the number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from scipy.stats import binomtest
from transformers import PreTrainedModel

from ..scoring.prompts import text_of
from .sampling import Sampling, conversation_of, sample, seeded, verdicts


@dataclass(frozen=True)
class Accuracy:
    """Right answers among problems, one sampled answer each."""

    correct: int
    problems: int

    @property
    def value(self) -> float:
        return self.correct / self.problems

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy on problems like these."""
        interval = binomtest(self.correct, self.problems).proportion_ci(confidence_level=0.95, method="wilson")
        return float(interval.low), float(interval.high)

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"accuracy": self.value, "low": low, "high": high, "correct": self.correct, "problems": self.problems}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}] of {self.problems} problems"


def evaluate_accuracy(
    model: PreTrainedModel,
    processing_class: Any,
    dataset: Dataset,
    *,
    max_completion_length: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    chat_template_kwargs: dict[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    reward_func: Callable[..., Sequence[float | None]] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Accuracy, list[str]]:
    """Sample one answer per problem and judge it.

    Args:
        model: The policy.
        processing_class: Its tokenizer, or its processor if it reads images.
        dataset: With TRL's columns `prompt`, `solution` and, for images, `image` or `images`.
        max_completion_length: Longest answer [tokens].
        temperature: Of sampling; 0 takes the most likely token.
        top_p, top_k: Of sampling; 1.0 and 0 restrict nothing, as in TRL's rollouts.
        chat_template_kwargs: Further arguments of the chat template, as in training.
        batch_size: Problems at a time.
        seed: Of sampling. The caller's random state is left as it was.
        reward_func: The verifier, as TRL's reward functions, whose `accuracy_reward` it is by default; 0.5 and more is
            right, None is wrong.
        on_progress: Called with the number of problems done.

    Returns:
        The accuracy, and the sampled answers as text.
    """
    judge = reward_func
    if judge is None:
        from trl.rewards import accuracy_reward

        judge = accuracy_reward
    sampling = Sampling(max_completion_length, temperature, top_p, top_k, chat_template_kwargs, batch_size)
    answers: list[str] = []
    correct = 0
    with seeded(seed):
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
            conversations = [conversation_of(row, processing_class) for row in rows]
            texts = [text_of(processing_class, ids) for ids in sample(model, processing_class, conversations, sampling)]
            rewards = verdicts(judge, rows, texts)
            correct += sum(reward is not None and reward >= 0.5 for reward in rewards)
            answers += texts
            if on_progress:
                on_progress(len(answers))
    return Accuracy(correct, len(answers)), answers
