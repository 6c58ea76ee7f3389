"""Teacher weights: swapped in for scoring, restored afterwards, saved and loaded."""

import pytest
import torch
from torch import nn

from cepo.scoring.teacher_weights import TeacherWeights


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    made[0].bias.requires_grad_(False)
    return made


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def move(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)


@pytest.mark.parametrize("source", ["initial", "synced", "ema"])
def test_in_place_and_back(source):
    policy = model()
    teacher = TeacherWeights(policy, source, sync_steps=5, decay=0.9)
    before = state(policy)
    identities = [id(p) for p in policy.parameters()]
    move(policy)
    after = state(policy)
    with teacher.in_place():
        assert same(state(policy), before)
    assert same(state(policy), after)
    with pytest.raises(RuntimeError), teacher.in_place():
        raise RuntimeError
    assert same(state(policy), after)
    assert [id(p) for p in policy.parameters()] == identities  # the optimizer keeps its parameters


def test_teacher_policy_needs_no_copy():
    policy = model()
    teacher = TeacherWeights(policy, "policy")
    assert not teacher.lags
    move(policy)
    now = state(policy)
    with teacher.in_place():
        assert same(state(policy), now)


def test_initial_synced_and_ema():
    expected = {"initial": [0, 0, 0, 0], "synced": [0, 2, 2, 4], "ema": [0.25, 0.6875, 1.265625, 1.94921875]}
    for source, offsets in expected.items():
        policy = model()
        start = policy[0].weight.detach().clone()
        teacher = TeacherWeights(policy, source, sync_steps=2, decay=0.75)
        for step, offset in enumerate(offsets, start=1):
            move(policy)
            teacher.after_step(step)
            with teacher.in_place():
                assert torch.allclose(policy[0].weight, start + offset, atol=1e-6)


def test_an_average_of_bfloat16_weights_is_kept_in_float32():
    policy = nn.Linear(2, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        policy.weight.fill_(1.0)
    teacher = TeacherWeights(policy, "ema", decay=0.999)
    with torch.no_grad():
        policy.weight.fill_(2.0)
    for step in range(1, 1001):
        teacher.after_step(step)
    with teacher.in_place():
        assert policy.weight.dtype == torch.bfloat16
        assert policy.weight.float().flatten().tolist() == pytest.approx([2 - 0.999**1000] * 2, abs=0.01)


def test_save_and_load(tmp_path):
    policy = model()
    teacher = TeacherWeights(policy, "ema", decay=0.5)
    move(policy)
    teacher.after_step(1)
    teacher.save(str(tmp_path))
    other = model()
    move(other)
    resumed = TeacherWeights(other, "ema", decay=0.5)
    resumed.load(str(tmp_path))
    with teacher.in_place(), resumed.in_place():
        assert same(state(policy), state(other))


def test_a_checkpoint_without_the_copy_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"teacher\.safetensors"):
        TeacherWeights(model(), "initial").load(str(tmp_path))
    TeacherWeights(model(), "policy").load(str(tmp_path))
