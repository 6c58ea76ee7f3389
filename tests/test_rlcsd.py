"""RLCSD: sibling rollouts in hints, an additive placement, two means in the loss."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo import MethodOptions
from cepo.methods import METHODS, Tools
from cepo.references.groups import Attempt

from .reference import loops
from .test_methods import check_a_real_step, inputs_of, placed_by
from .test_trainer import logged, loss_inputs, task

__all__ = ["loss_inputs", "task"]  # fixtures

RIGHT = [Attempt("7", 1.0, True, f"right {place}") for place in range(3)]
WRONG = [Attempt(str(place), 0.0, False, f"wrong {place}") for place in range(6)]
MUTE = Attempt(None, 0.0, False, "wrong without an answer")


def references(attempts, seed=0, **options):
    tools = Tools(lambda text, part, tokens: text, random.Random(seed))
    return METHODS["rlcsd"].references(attempts, r"so \boxed{7}", MethodOptions(method="rlcsd", **options), tools)


def test_by_hand():
    """tau 0.02, strength 0.5: e = 0.02 adds 0.5 tanh(1) = 0.3808, e = 1 adds 0.5, e = 0.0007 less than 0.02."""
    inputs = inputs_of([[0.02, 1.0, -1.0, 0.0007]] * 3, [1.0, -0.3, 0.0])
    placed = placed_by("rlcsd", inputs)
    expected = [[1.3808, 1.5, 0.5, 1.0], [0.0, 0.0, -0.8, -0.3], [0.0] * 4]  # +0.08 and +0.2 would change the sign
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)
    assert placed.at_bound.tolist() == [[False] * 4, [True, True, False, False], [False] * 4]
    assert placed.scale.tolist() == [0.5] * 3
    # Nine of twelve tokens are selected, three are not.
    assert_close(placed.loss_weights[0], torch.tensor([12 / 9] * 3 + [12 / 3], dtype=torch.float64))


def test_a_rollout_without_siblings_is_not_trained_on():
    inputs = inputs_of([[1.0, 1.0], [0.0, 0.0]], [1.0, -1.0], scored=[True, False])
    placed = placed_by("rlcsd", inputs)
    assert placed.advantages[1].tolist() == [0.0, 0.0]
    assert (placed.shift[1] < 0).all()  # it takes none of the blame


values = st.floats(-3, 3)


@given(
    st.lists(st.tuples(values, st.booleans(), st.lists(values, min_size=4, max_size=4)), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=16, max_size=16),
    st.floats(0.01, 2),
    st.floats(0, 2),
    st.floats(0, 3),
)
def test_agrees_with_plain_loops_and_two_means(rows, kept, tau, strength, eta):
    advantages, read, evidence = map(list, zip(*rows, strict=True))
    mask = [kept[4 * row : 4 * row + 4] for row in range(len(rows))]
    own = {"tau": tau, "beta": 1.0, "eta": eta, "lowest": -0.7, "highest": 0.9}
    inputs = inputs_of(evidence, advantages, mask=mask, scored=read)
    options = {"evidence_coefficient": min(1.0, strength), "method_kwargs": own}
    placed = placed_by("rlcsd", inputs, **options)
    expected, selected = loops.rlcsd(
        advantages, evidence, mask, read, tau, min(1.0, strength), 0.02, own["lowest"], own["highest"]
    )
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    # TRL's mean over all tokens of A_t times its weight is the authors' sum of two means.
    count = max(1, sum(map(sum, mask)))
    trls = (placed.in_loss.sum() / count).item()
    counted = [[keep and was for keep in row] for row, was in zip(mask, read, strict=True)]
    assert trls == pytest.approx(loops.rlcsd_loss(expected, selected, counted, eta), abs=1e-9)
    signs = inputs.advantages.sign().unsqueeze(-1)
    assert (placed.advantages * signs >= 0).all()


def test_every_rollout_is_told_siblings_and_never_itself():
    attempts = [*RIGHT, *WRONG, MUTE]
    seen = set()
    for seed in range(30):
        for place, found in enumerate(references(attempts, seed)):
            assert attempts[place].text not in found.positive
            assert found.positive.startswith("right ")
            assert found.positive.endswith("Its final answer, 7, is the correct one.")
            assert len(found.negatives) == len(set(found.negatives)) == 4
            assert not any(attempts[place].text in text or MUTE.text in text for text in found.negatives)
            assert [attempts[source].text for source in found.sources] == [t.split("\n")[0] for t in found.negatives]
            seen.add((place, found.positive))
    assert len(seen) == 3 * 2 + 7 * 3  # each right sibling of each rollout is drawn at some time
    assert references(attempts, 1) == references(attempts, 1)


def test_what_is_missing_is_said():
    one_right = references([RIGHT[0], *WRONG[:2]])
    assert [found.fallback for found in one_right] == ["no_right_rollout", None, None]
    one_wrong = references([*RIGHT[:2], WRONG[0], MUTE])
    assert [found.fallback for found in one_wrong] == [None, None, "no_wrong_rollout", None]
    assert [len(found.negatives) for found in one_wrong] == [1, 1, 0, 1]
    for found in (one_right[0], one_wrong[2]):
        assert METHODS["rlcsd"].contexts(found, MethodOptions(method="rlcsd")) == []
    told = references([RIGHT[0], *WRONG[:2]], method_kwargs={"right_hint": "solution"})
    assert [found.positive for found in told] == [r"so \boxed{7}"] * 3
    boxless = Attempt(None, 1.0, True, "right without a box")
    assert references([boxless, RIGHT[0], WRONG[0]])[1].positive.endswith("Its final answer, 7, is the correct one.")


def test_several_wrong_siblings_count_by_their_mean_probability():
    logps = torch.tensor([[[-1.0]], [[math.log(0.2)]], [[math.log(0.4)]]])
    found = METHODS["rlcsd"].evidence(logps, torch.ones(3, 1, dtype=torch.bool))
    assert_close(found.values, torch.tensor([[-1.0 - math.log(0.3)]]))


@pytest.mark.parametrize(
    ("constants", "named"),
    [
        ({"tau": 0}, "tau"),
        ({"eta": -1}, "eta"),
        ({"lowest": 1, "highest": 0}, "lowest"),
        ({"right_hint": "hope"}, "hope"),
    ],
)
def test_constants_out_of_range(constants, named):
    with pytest.raises(ValueError, match=named):
        MethodOptions(method="rlcsd", method_kwargs=constants)


def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch):
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "rlcsd")
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    assert logged(trainer, "cepo/coefficient") == [0.5]
    assert batch["scored"].all()
    assert batch["advantages"].unique().numel() > 4


def test_a_group_with_one_right_rollout(tmp_path, task, loss_inputs, monkeypatch):
    """It is not trained on; the wrong ones are told it."""

    def one(completions, **kwargs):
        return [float(row % 4 == 0) for row in range(len(completions))]

    _, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "rlcsd", reward=one)
    right = batch["verdicts"] > 0
    assert right.sum() == 2
    assert not batch["scored"][right].any()
    assert not batch["advantages"][right].any()
    assert batch["scored"][~right].all()
