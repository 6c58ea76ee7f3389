"""Token advantages of credit.py against float64 loops, and the documented bounds of every method."""

import pytest
import torch
from hypothesis import strategies as st

from cepo import credit
from cepo.methods import method_options
from cepo.methods.option_fields import option_fields
from cepo.methods.registry import METHODS
from cepo.methods.token_advantages import CreditInputs
from tests.support.methods import needed_by

from ..reference import loops
from .properties import examples

numbers = st.floats(-60, 60, width=32)
advantages = st.one_of(st.floats(-8, 8, width=32), st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1e6]))
deltas = st.one_of(numbers, st.sampled_from([0.0, 1e30, -1e30, 88.8, -88.8, 1e-30]))
clips = st.one_of(st.floats(0.001, 0.999), st.sampled_from([1e-9, 1 - 1e-9]))
lambdas = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]))


def tables(draw, elements, rows, columns):
    return draw(st.lists(st.lists(elements, min_size=columns, max_size=columns), min_size=rows, max_size=rows))


def rows_of(draw, elements, rows):
    return draw(st.lists(elements, min_size=rows, max_size=rows))


@st.composite
def batches(draw):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    return (
        rows_of(draw, advantages, rows),
        tables(draw, deltas, rows, columns),
        tables(draw, st.booleans(), rows, columns),
    )


@examples(2500, batch=batches(), coefficient=lambdas, clip=clips)
def test_token_advantages(batch, coefficient, clip):
    own, evidence, mask = batch
    found = credit.token_advantages(
        torch.tensor(own), torch.tensor(evidence), torch.tensor(mask), coefficient=coefficient, clip=clip
    )
    # Both start from the float32 inputs.
    own, evidence = torch.tensor(own).double().tolist(), torch.tensor(evidence).double().tolist()
    expected = torch.tensor(loops.token_advantages(own, evidence, mask, coefficient, clip), dtype=torch.float64)
    scale = torch.tensor(own, dtype=torch.float64).abs().unsqueeze(-1)
    assert ((found.double() - expected).abs() <= 1e-6 * scale + 1e-37).all()
    assert (found.sign() * torch.tensor(own, dtype=torch.float32).sign().unsqueeze(-1) >= 0).all()


# The methods ----------------------------------------------------------------------------------------------------------

CONSTANTS = {
    "rlcsd": st.fixed_dictionaries(
        {
            "tau": st.floats(1e-3, 5),
            "evidence_beta": st.floats(0, 4),
            "selection_threshold": st.floats(0, 1),
            "selected_loss_weight": st.floats(0, 4),
            "bonus_min": st.floats(-3, 0),
            "bonus_max": st.floats(0, 3),
        }
    ),
    "cepo_additive": st.fixed_dictionaries(
        {"uniform_share": st.floats(0.001, 3), "evidence_bonus": st.floats(0, 3), "tau": st.floats(1e-3, 5)}
    ),
    "cscr": st.fixed_dictionaries(
        {"damping_rate": st.floats(0, 50), "damping_threshold": st.floats(0, 5), "damping_floor": st.floats(0.001, 1)}
    ),
    "pbsd": st.fixed_dictionaries(
        {
            "evidence_scale": st.floats(1e-3, 50),
            "weight_bound": st.floats(0.001, 0.999),
            "evidence_unit": st.sampled_from(["turn", "token"]),
        }
    ),
    "distilled_rl": st.fixed_dictionaries(
        {
            "ratio_clip": st.floats(1.001, 50),
            "normalize_ratios": st.booleans(),
            "reweighted_rollouts": st.sampled_from(["positive", "negative", "all"]),
        }
    ),
    "sdar": st.fixed_dictionaries({"sdar_coefficient": st.floats(0, 2), "gate_scale": st.floats(0.01, 50)}),
    "oracle": st.fixed_dictionaries({"only_mistakes": st.booleans()}),
}


@st.composite
def method_inputs(draw, name):
    """Options of a method, and a batch."""
    known = option_fields(METHODS[name].options)
    options = {**needed_by(name), "negative_advantage_weight": draw(st.sampled_from([1.0, 0.0, 0.05, 3.0]))}
    if "divergence" in known:
        options |= {"negative_advantage_weight": 1.0, "divergence": "sampled"}
    if name in CONSTANTS:
        options |= draw(CONSTANTS[name])
    for option, values in {
        "evidence_coefficient": lambdas,
        "evidence_clip": st.floats(0.001, 0.999),
        "evidence_steps": st.integers(0, 30),
    }.items():
        if option in known:
            options[option] = draw(values)
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    mask = torch.tensor(tables(draw, st.booleans(), rows, columns))
    values = torch.tensor(tables(draw, deltas, rows, columns)).masked_fill(~mask, 0.0)
    scored = torch.tensor(rows_of(draw, st.booleans(), rows))
    unscorable = torch.tensor(tables(draw, st.booleans(), rows, columns)) & scored.unsqueeze(-1)
    values = values.masked_fill(unscorable, 0.0).masked_fill(~scored.unsqueeze(-1), 0.0)
    own = torch.tensor(rows_of(draw, st.one_of(st.floats(-8, 8, width=32), st.just(0.0)), rows))
    verdicts = torch.tensor(rows_of(draw, st.sampled_from([1.0, 0.0, -1.0]), rows))
    return method_options(name, **options), CreditInputs(own, values, mask, scored, verdicts, unscorable)


@pytest.mark.parametrize("method", sorted(METHODS))
@examples(200, data=st.data(), step=st.integers(0, 40))
def test_bounds(method, data, step):
    """Properties of every method, and bounds of each."""
    options, inputs = data.draw(method_inputs(method))
    placed = options.method_spec.token_advantages(inputs, options, step)
    found, base, mask = placed.advantages, placed.rollout_advantages.unsqueeze(-1), inputs.mask
    for values in (found, placed.in_loss, placed.shift, placed.scale, placed.rollout_advantages):
        assert values.isfinite().all(), values
    for values in (found, placed.in_loss, placed.shift):
        assert (values[~mask] == 0).all()
    assert not (placed.at_bound & ~mask).any()
    assert not (placed.moved & ~mask).any()
    if options.negative_advantage_weight == 0:
        assert (found[base.expand_as(found) < 0] == 0).all()
    if options.method_spec.doc.sign.startswith("yes"):
        assert (found * base >= 0).all()
    if (bounds := bounds_of(options, step)) is not None:
        low, high = bounds
        factor = torch.where(inputs.advantages.unsqueeze(-1) < 0, options.negative_advantage_weight, 1.0)
        own = inputs.advantages.unsqueeze(-1) * factor
        share = torch.where(own.abs() > 1e-6, found / own, 1.0)
        checked = mask & (own.abs() > 1e-6)
        assert (share[checked] >= low - 1e-4 - 1e-4 * abs(low)).all()
        assert (share[checked] <= high + 1e-4 + 1e-4 * abs(high)).all()
    if options.method == "rlcsd":
        strength = options.evidence_beta * options.coefficient_at(step)
        most = min(strength, max(-options.bonus_min, options.bonus_max))
        weight = max(1.0, options.negative_advantage_weight)
        scored = mask & inputs.scored.unsqueeze(-1)
        assert ((found - base)[scored].abs() <= weight * most * (1 + 1e-5) + 1e-5).all()
        assert (found[~scored] == 0).all()
    if options.method == "cepo_additive":
        scored = mask & inputs.scored.unsqueeze(-1)
        # An incorrect rollout of a zero-variance group has a negative advantage under this method.
        negative = (inputs.advantages < 0) | ((inputs.advantages == 0) & (inputs.verdicts < 0))
        factor = torch.where(negative, options.negative_advantage_weight, 1.0)
        bound = factor * (options.uniform_share * inputs.advantages.abs() + options.evidence_bonus)
        most = bound.unsqueeze(-1).expand_as(found)
        assert (found[scored].abs() <= most[scored] * (1 + 1e-5) + 1e-5).all()
        unscored = mask & ~inputs.scored.unsqueeze(-1)
        assert torch.allclose(found[unscored], base.expand_as(found)[unscored])
    if options.method == "cscr":  # the sum over a rollout is unchanged
        counted = mask & ~inputs.unscorable & inputs.scored.unsqueeze(-1)
        total = torch.where(counted, found, 0.0).sum(1)
        assert torch.allclose(total, (base * counted).sum(1), rtol=1e-4, atol=1e-4)


def bounds_of(options, step):
    """The smallest and largest A_t / A by docs/methods.md; None for a method without such a bound."""
    if options.method in ("cepo", "rlsd", "rlrt") or (options.method == "oracle" and not options.only_mistakes):
        most = options.coefficient_at(step) * options.evidence_clip
        return 1 - most, 1 + most
    if options.method == "oracle":
        return 0.0, 1.0
    if options.method == "grpo":
        return 1.0, 1.0
    if options.method == "cscr":
        return options.damping_floor, 1 / options.damping_floor
    if options.method == "pbsd":
        return 1 - options.weight_bound, 1 + options.weight_bound
    if options.method == "distilled_rl":
        return options.ratio_clip**-2, options.ratio_clip**2
    return None
