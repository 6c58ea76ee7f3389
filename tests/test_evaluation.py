"""Accuracy, pass@k and entropy: by hand, against scipy, and against plain loops over a real model."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cepo.data import evaluation
from cepo.data.accuracy import Accuracy, Entropy, Evaluation
from cepo.data.evaluation import Share, entropy_of, evaluate
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling, conversation_of, sample, seeded
from cepo.scoring.entropy import token_entropies
from cepo.scoring.prompts import PromptEncoder, token_texts
from cepo.scoring.requests import Request
from cepo.tasks.figures import figures_reward, load_figures, policy_path
from cepo.tasks.figures.oracle import token_kinds


@given(st.integers(0, 40), st.integers(1, 40))
def test_interval_of_single_completions_is_wilsons(correct, problems):
    correct = min(correct, problems)
    found = Accuracy((1.0,) * correct + (0.0,) * (problems - correct))
    expected = binomtest(correct, problems).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_completions_that_agree_count_as_one():
    agreeing = Evaluation(1.0, 8, (8, 0, 8, 0, 8, 0), [])
    single = Evaluation(0.0, 1, (1, 0, 1, 0, 1, 0), [])
    # Slightly wider: the variance is estimated with n - 1.
    (low, high), (narrow_low, narrow_high) = agreeing.accuracy.interval, single.accuracy.interval
    assert narrow_low - 0.02 < low < narrow_low < narrow_high < high < narrow_high + 0.02
    mixed = Evaluation(1.0, 8, (4, 3, 5, 4, 3, 5), [])
    assert mixed.accuracy.value == single.accuracy.value
    assert mixed.accuracy.interval[0] > single.accuracy.interval[0]
    # The effective number is at most the number of completions.
    alike = Evaluation(1.0, 8, (4, 4, 4, 4, 4, 4), [])
    assert alike.accuracy.interval == pytest.approx(Accuracy((1.0,) * 24 + (0.0,) * 24).interval)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_correct_completion(case):
    samples, correct, k = case
    answers = [True] * correct + [False] * (samples - correct)
    draws = list(itertools.combinations(answers, k))
    expected = sum(map(any, draws)) / len(draws)
    assert Evaluation(1.0, samples, (correct,), []).pass_at(k).value == pytest.approx(expected)


@given(st.integers(1, 500), st.booleans())
def test_interval_contains_the_mean_at_0_and_1(problems, correct):
    low, high = Accuracy((float(correct),) * problems).interval
    assert 0 <= low <= correct <= high <= 1


def test_pass_at_k_needs_k_completions():
    with pytest.raises(ValueError, match="pass@9 needs at least 9 completions per problem, and there are 8"):
        Evaluation(1.0, 8, (3,), []).pass_at(9)


def test_entropy_by_hand():
    found = Entropy((1.0, 3.0), (2, 4))
    assert found.value == pytest.approx(4 / 6)
    # Residuals of the ratio: 1 - 2 * 2/3 and 3 - 4 * 2/3, over the mean count of 3, Student's t with 1 degree.
    error = math.sqrt(2 * ((1 - 4 / 3) ** 2 + (3 - 8 / 3) ** 2) / 1) / 6
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(12.7062 * error, rel=1e-4)
    assert all(map(math.isnan, Entropy((1.0,), (2,)).interval))


@pytest.fixture(scope="module")
def policy():
    return load_policy(policy_path())


def test_token_entropies_at_a_temperature(policy):
    model, processor = policy
    rows = list(load_figures("test", 2))
    conversations = [conversation_of(row, processor) for row in rows]
    encoder = PromptEncoder(processor)
    prompts = [encoder.prompt(messages) for messages in conversations]
    with seeded(0):
        completions = sample(model, processor, conversations, Sampling(12, 0.7))
    requests = [Request(index, prompts[index].ids, ids) for index, ids in enumerate(completions)]
    found = token_entropies(model, prompts, requests, temperature=0.7, max_tokens=1)
    for prompt, ids, values in zip(prompts, completions, found, strict=True):
        whole = torch.tensor([[*prompt.ids, *ids]])
        types = torch.cat([prompt.token_types["mm_token_type_ids"], torch.zeros(len(ids), dtype=torch.int)])
        with torch.no_grad():
            logits = model(input_ids=whole, mm_token_type_ids=types[None], **prompt.images).logits[0].double()
        for position in range(len(ids)):
            p = (logits[len(prompt.ids) + position - 1] / 0.7).softmax(-1)
            assert values[position].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)


def test_evaluate_samples_all_problems(policy):
    model, processor = policy
    data = load_figures("test", 3)
    seen = []

    def judge(completions, solution, **kwargs):
        seen.extend(solution)
        return figures_reward(completions, solution, **kwargs)

    sampling = Sampling(16, 1.0, batch_size=2)
    found = evaluate(model, processor, data, sampling, samples=3, seed=5, reward_func=judge)
    assert sorted(seen) == sorted(list(data["solution"]) * 3)
    assert (found.samples, len(found.correct), len(found.answers)) == (3, 3, 9)
    again = evaluate(model, processor, data, sampling, samples=3, seed=5, reward_func=judge)
    assert again.answers == found.answers
    greedy = evaluate(model, processor, data, Sampling(16, 0.0), samples=3, reward_func=judge)
    assert (greedy.samples, greedy.entropy, len(greedy.answers)) == (1, None, 3)
    # Entropy is that of the first completion of each problem; content follows from the token labels.
    with seeded(5):
        rows = [data[index] for index in range(3)]
        first = sample(model, processor, [conversation_of(row, processor) for row in rows], sampling)
    overall, content = entropy_of(model, processor, data, dict(enumerate(first)), sampling)
    assert (overall, content) == (found.entropy, found.content_entropy)
    kinds = [token_kinds(row, token_texts(processor, ids)) for row, ids in zip(rows, first, strict=True)]
    assert content.counts == tuple(sum(kind in ("mistake", "decision") for kind in line) for line in kinds)
    assert overall.counts == tuple(map(len, first))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_processes_together_return_what_one_returns(policy, figures, count):
    """Each samples its share in as many calls as the others, and returns the whole."""
    model, processor = policy
    data = figures.select(range(7))
    calls, gathered = [], []

    def asked_by(index, everyone):
        """Evaluate as process `index`, whose `gather` returns `everyone`."""
        given = []

        def gather(found):
            given.append(found)
            return everyone[len(given) - 1] if everyone else found

        plain, before = evaluation.sample, len(calls)
        evaluation.sample = lambda *args: calls.append(index) or plain(*args)
        try:
            sampling = Sampling(16, 0.0, batch_size=2)
            return evaluate(model, processor, data, sampling, share=Share(index, count, gather)), given, before
        finally:
            evaluation.sample = plain

    for index in range(count):
        gathered.append(asked_by(index, None)[1])
    assert len({calls.count(index) for index in range(count)}) == 1
    everyone = [[one for part in parts for one in part] for parts in zip(*gathered, strict=True)]
    alone = evaluate(model, processor, data, Sampling(16, 0.0, batch_size=2))
    for index in range(count):
        found, *_ = asked_by(index, everyone)
        assert (found.correct, found.answers) == (alone.correct, alone.answers)
