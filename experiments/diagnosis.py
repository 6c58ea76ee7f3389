"""Print the mistakes of models on the figures task, and their divergence from a teacher conditioned on r+.

    python -m experiments.diagnosis comparison/grpo/seed-0 comparison/opsd/seed-0

Two Markdown tables, the shipped policy first. The teacher is the shipped policy conditioned on r+ by cepo's default
hint. The divergence is KL(teacher || model) over the whole vocabulary, on the model's samples.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset

from cepo.commands import quiet_libraries
from cepo.data.evaluation import evaluate_accuracy
from cepo.data.loading import load_policy
from cepo.data.sampling import Sampling, conversation_of, sample, seeded
from cepo.references.extraction import reference_answer
from cepo.references.groups import Messages
from cepo.references.hints import DEFAULT_HINT_TEMPLATE, add_hint, fill_hint
from cepo.scoring.prompts import left_padding, token_texts
from cepo.scoring.score import evaluating
from cepo.tasks.figures import (
    Annotation,
    Problem,
    Span,
    annotate,
    figures_reward,
    load_figures,
    policy_path,
    problem_of,
    token_spans,
)
from cepo.tasks.figures.mistakes import MISTAKES, judged_numbers

WORDS, AFTER_CORRECT, AFTER_INCORRECT = "words", "result after correct numbers", "result after an incorrect number"
_NAMES = {"read": "reading", "copy": "copy of a result", "answer": "box"}
_ROWS = 32


def mistake_shares(solved: Iterable[tuple[Problem, str]]) -> dict[str, float]:
    """The share of mistakes of each kind of `MISTAKES`; NaN without an opportunity.

    Args:
        solved: Problems and completions. A completion without three numbers a step counts only under "form". A box is
            one opportunity.
    """
    total, mistakes = Counter[str](), Counter[str]()

    def note(kind: str, correct: bool) -> None:
        total[kind] += 1
        mistakes[kind] += not correct

    for problem, completion in solved:
        numbers = judged_numbers(problem, completion)
        boxed = [number for number in numbers if number.kind == "box"]
        complete = len(numbers) - len(boxed) == 3 * len(problem.labels)
        note("form", complete)
        if not complete:
            continue
        for number in numbers:
            if number.kind != "box":
                note(number.kind, number.right)
        note("box", len(boxed) == len(problem.labels) and all(number.right for number in boxed))
    return {kind: mistakes[kind] / total[kind] if total[kind] else float("nan") for kind in MISTAKES}


def kind_of(span: Span | None, problem: Problem, found: Annotation, text: str) -> str:
    """The kind of a token; results after correct numbers are a separate kind."""
    if span is None:
        return WORDS
    if span.kind != "result":
        return _NAMES[span.kind]
    numbers = [text[one.start : one.end] for one in found.spans if one.step == span.step and one.kind != "answer"]
    correct = [(problem.start, *problem.angles)[span.step], problem.labels[span.step]]
    return AFTER_CORRECT if numbers[:2] == [str(number) for number in correct] else AFTER_INCORRECT


@torch.no_grad()
def log_probs(model: Any, processor: Any, conversations: Sequence[Messages], completions: Sequence[Any]) -> Any:
    """(B, T, V) log-probs [nats] of the completion positions, for small batches and vocabularies."""
    inputs = processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **left_padding(processor),
    )
    start, longest = inputs["input_ids"].shape[1], max(map(len, completions))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in completions])
    exists = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in completions])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], exists], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
    with evaluating(model):
        return model(**inputs).logits[:, start - 1 : -1].log_softmax(-1)


def divergences(model: Any, teacher: Any, processor: Any, plain: Dataset, hinted_rows: Dataset) -> dict[str, list[Any]]:
    """(KL(teacher || model), entropy of the model) [nats] of each token, by kind of token."""
    asked, hinted = ([conversation_of(row, processor) for row in rows] for rows in (plain, hinted_rows))
    with seeded(1):
        completions = sample(model, processor, asked, Sampling())
    found = defaultdict(list)
    for start in range(0, len(plain), _ROWS):
        part = slice(start, start + _ROWS)
        own = log_probs(model, processor, asked[part], completions[part])
        its = log_probs(teacher, processor, hinted[part], completions[part])
        kl, entropy = (its.exp() * (its - own)).sum(-1), -(own.exp() * own).sum(-1)
        for place, ids in enumerate(completions[part]):
            problem, tokens = problem_of(plain[start + place]), token_texts(processor, ids)
            text = "".join(tokens)
            annotation = annotate(problem, text)
            for position, span in enumerate(token_spans(annotation, tokens)):
                kind = kind_of(span, problem, annotation, text)
                found[kind].append((kl[place, position].item(), entropy[place, position].item()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="folders of trained models")
    parser.add_argument("--num_problems", type=int, default=500)
    options = parser.parse_args()
    quiet_libraries()
    plain = load_figures("test", options.num_problems)
    hinted_rows = plain.map(
        lambda row: {
            "prompt": add_hint(row["prompt"], fill_hint(DEFAULT_HINT_TEMPLATE, reference_answer(row["solution"])))
        }
    )
    shipped, processor = load_policy(policy_path())
    models = {"shipped policy": shipped, **{name: load_policy(name)[0] for name in options.models}}

    print(f"| percent | correct | {' | '.join(MISTAKES)} |")
    print("|---" * (2 + len(MISTAKES)) + "|")
    hinted = ("shipped policy conditioned on r+", shipped, hinted_rows)
    for name, model, dataset in [hinted, *((name, model, plain) for name, model in models.items())]:
        accuracy, answers = evaluate_accuracy(model, processor, dataset, reward_func=figures_reward, seed=1)
        shares = mistake_shares((problem_of(row), text) for row, text in zip(plain, answers, strict=True))
        cells = " | ".join(f"{100 * share:.1f}" for share in (accuracy.value, *shares.values()))
        print(f"| {name} | {cells} |", flush=True)

    print("\n| model | tokens | number | divergence, nats a token | share of all, % | entropy, nats |")
    print("|---|---|---|---|---|---|")
    for name, model in models.items():
        found = divergences(model, shipped, processor, plain, hinted_rows)
        total = sum(kl for values in found.values() for kl, _ in values)
        for kind in (WORDS, *_NAMES.values(), AFTER_CORRECT, AFTER_INCORRECT):
            if not found[kind]:
                continue
            kls, entropies = zip(*found[kind], strict=True)
            numbers = f"{len(kls)} | {fmean(kls):.4f} | {100 * sum(kls) / total:.0f} | {fmean(entropies):.3f}"
            print(f"| {name} | {kind} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
