"""The Bayes identity, exactly, on a tabular model: evidence is the change of belief caused by a token.

The table is a joint distribution over references r and token sequences y. A teacher is then P(y_t | r, y_<t), the
student P(y_t | y_<t), and log P_T / P_S at t must be log P(r | y_<=t) - log P(r | y_<t).
"""

import itertools

import pytest
import torch
from torch.testing import assert_close

from cepo.credit import evidence

REFERENCES, VOCABULARY, LENGTH = 3, 2, 3


@pytest.fixture(params=range(5))
def joint(request):
    """P(r, y_1, ..., y_T), every entry positive."""
    generator = torch.Generator().manual_seed(request.param)
    table = torch.rand(REFERENCES, *[VOCABULARY] * LENGTH, generator=generator, dtype=torch.float64) + 0.01
    return table / table.sum()


def probability(joint, prefix, reference=None):
    """P(y_<=t = prefix), or P(r, y_<=t = prefix)."""
    part = joint[(slice(None), *prefix)].reshape(REFERENCES, -1).sum(1)
    return part.sum() if reference is None else part[reference]


def belief(joint, prefix, reference):
    return (probability(joint, prefix, reference) / probability(joint, prefix)).log()


def teacher(joint, tokens, reference=None):
    """(1, T) log-probs of `tokens` under a teacher, or the student without a reference."""
    steps = [
        probability(joint, tokens[: t + 1], reference) / probability(joint, tokens[:t], reference)
        for t in range(len(tokens))
    ]
    return torch.stack(steps).log().unsqueeze(0)


SEQUENCES = list(itertools.product(range(VOCABULARY), repeat=LENGTH))


@pytest.mark.parametrize("tokens", SEQUENCES)
def test_evidence_is_the_belief_update_for_the_right_answer_minus_that_for_the_wrong_one(joint, tokens):
    right, wrong = 0, 2
    delta = evidence(teacher(joint, tokens, right), teacher(joint, tokens, wrong))[0]
    for t in range(LENGTH):
        before, after = tokens[:t], tokens[: t + 1]
        update_right = belief(joint, after, right) - belief(joint, before, right)
        update_wrong = belief(joint, after, wrong) - belief(joint, before, wrong)
        assert_close(delta[t], update_right - update_wrong)


@pytest.mark.parametrize("tokens", SEQUENCES)
def test_rlsd_evidence_is_the_belief_update_and_telescopes(joint, tokens):
    delta = evidence(teacher(joint, tokens, 1), teacher(joint, tokens))[0]
    assert_close(delta.sum(), belief(joint, tokens, 1) - belief(joint, (), 1))
