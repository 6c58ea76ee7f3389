"""Float64 reference implementation of the equations in plain loops, from the paper's formulas."""

import math


def evidence(positive, negative):
    table = []
    for row_positive, row_negative in zip(positive, negative, strict=True):
        row = []
        for plus, minus in zip(row_positive, row_negative, strict=True):
            row.append(plus - minus if math.isfinite(plus) and math.isfinite(minus) else 0.0)
        table.append(row)
    return table


def weight(delta, advantage, clip):
    sign = (advantage > 0) - (advantage < 0)
    exponent = sign * delta
    if exponent > 700:
        return 1 + clip
    value = math.exp(exponent)
    return min(max(value, 1 - clip), 1 + clip)


def token_advantages(advantages, deltas, mask, coefficient, clip):
    table = []
    for advantage, row, row_mask in zip(advantages, deltas, mask, strict=True):
        out = []
        for delta, kept in zip(row, row_mask, strict=True):
            if kept:
                out.append(advantage * ((1 - coefficient) + coefficient * weight(delta, advantage, clip)))
            else:
                out.append(0.0)
        table.append(out)
    return table


def mean_probability(logps, present):
    """logps[k][b][t], present[k][b] -> log of the mean probability, [b][t]."""
    table = []
    for b in range(len(logps[0])):
        row = []
        for t in range(len(logps[0][b])):
            probabilities = [math.exp(logps[k][b][t]) for k in range(len(logps)) if present[k][b]]
            mean = sum(probabilities) / len(probabilities) if probabilities else math.nan
            row.append(math.log(mean) if mean > 0 else (-math.inf if mean == 0 else math.nan))
        table.append(row)
    return table


def coefficient(step, initial, steps, schedule):
    if step >= steps:
        return 0.0
    if schedule == "linear":
        return initial * (steps - step) / steps
    if schedule == "cosine":
        return initial * (1 + math.cos(math.pi * step / steps)) / 2
    return initial


# Other methods --------------------------------------------------------------------------------------------------------


def rlcsd(advantages, evidence, mask, scored, tau, strength, threshold, lowest, highest):
    """Token advantages, and which tokens are selected."""
    table, selected = [], []
    for advantage, row, row_mask, was_scored in zip(advantages, evidence, mask, scored, strict=True):
        out, picked = [], []
        for value, kept in zip(row, row_mask, strict=True):
            added = min(max(strength * math.tanh(value / tau), lowest), highest)
            selected_terms = kept and was_scored and abs(added) > threshold
            if not kept or not was_scored:
                out.append(0.0)
            elif not selected_terms:
                out.append(advantage)
            elif advantage > 0:
                out.append(max(advantage + added, 0.0))
            elif advantage < 0:
                out.append(min(advantage + added, 0.0))
            else:
                out.append(0.0)
            picked.append(selected_terms)
        table.append(out)
        selected.append(picked)
    return table, selected


def cepo_additive(advantages, evidence, mask, scored, verdicts, prior, eta, tau, weight=1.0):
    """Token advantages, `negative_advantage_weight` included."""
    table = []
    for advantage, row, row_mask, was_scored, verdict in zip(advantages, evidence, mask, scored, verdicts, strict=True):
        no_correct_rollout = advantage == 0 and verdict < 0 and weight > 0
        out = []
        for value, kept in zip(row, row_mask, strict=True):
            if not kept:
                out.append(0.0)
            elif not was_scored:
                out.append(advantage * (weight if advantage < 0 else 1.0))
            elif advantage > 0:
                out.append(max(0.0, prior * advantage + eta * math.tanh(value / tau)))
            elif advantage < 0 or no_correct_rollout:
                out.append(-weight * max(0.0, -prior * advantage + eta * math.tanh(-value / tau)))
            else:
                out.append(0.0)
        table.append(out)
    return table


def rlcsd_loss(terms, selected, counted, eta):
    """Mean loss of unselected tokens plus eta times the mean loss of selected tokens."""
    selected_terms = [
        t for row, picks in zip(terms, selected, strict=True) for t, pick in zip(row, picks, strict=True) if pick
    ]
    others = [
        t
        for row, picks, kept in zip(terms, selected, counted, strict=True)
        for t, pick, count in zip(row, picks, kept, strict=True)
        if count and not pick
    ]
    return sum(others) / max(1, len(others)) + eta * sum(selected_terms) / max(1, len(selected_terms))


def rlrt(advantages, teacher_logps, student, verdicts, mask, coefficient, clip):
    table = []
    for advantage, row_teacher, row_student, verdict, row_mask in zip(
        advantages, teacher_logps, student, verdicts, mask, strict=True
    ):
        out = []
        for teacher, own, kept in zip(row_teacher, row_student, row_mask, strict=True):
            if not kept:
                out.append(0.0)
            elif verdict <= 0:
                out.append(advantage)
            else:
                sign = (advantage > 0) - (advantage < 0)
                ratio = math.exp(sign * (own - teacher))
                out.append(advantage * ((1 - coefficient) + coefficient * min(max(ratio, 1 - clip), 1 + clip)))
        table.append(out)
    return table


def cscr(advantages, positive, negative, student, mask, rate, threshold, floor):
    table = []
    for advantage, row_positive, row_negative, row_student, row_mask in zip(
        advantages, positive, negative, student, mask, strict=True
    ):
        raw = []
        for plus, minus, own, kept in zip(row_positive, row_negative, row_student, row_mask, strict=True):
            moved = max(abs(plus - own), abs(minus - own))
            raw.append(max(floor, math.exp(-rate * max(0.0, moved - threshold))) if kept else None)
        counted = [value for value in raw if value is not None]
        mean = sum(counted) / len(counted) if counted else 1.0
        table.append([0.0 if value is None else advantage * value / mean for value in raw])
    return table


def pbsd(advantages, evidence, mask, scale, bound, unit):
    table = []
    for advantage, row, row_mask in zip(advantages, evidence, mask, strict=True):
        sign = (advantage > 0) - (advantage < 0)
        out, position = [0.0] * len(row), 0
        while position < len(row):
            end = position + 1
            if row_mask[position]:
                while unit == "turn" and end < len(row) and row_mask[end]:
                    end += 1
                squashed = math.tanh(sum(row[position:end]) / scale)
                weight = 1 + sign * min(max(squashed, -bound), bound)
                out[position:end] = [advantage * weight] * (end - position)
            position = end
        table.append(out)
    return table


def distilled_rl(advantages, teacher, student, mask, ratio_clip, normalize, rollouts):
    table = []
    for advantage, row_teacher, row_student, row_mask in zip(advantages, teacher, student, mask, strict=True):
        weighs = {"positive": advantage > 0, "negative": advantage < 0, "all": advantage != 0}[rollouts]
        clipped = [
            min(max(math.exp(min(max(t - s, -80.0), 80.0)), 1 / ratio_clip), ratio_clip) if kept else None
            for t, s, kept in zip(row_teacher, row_student, row_mask, strict=True)
        ]
        counted = [value for value in clipped if value is not None]
        mean = math.prod(counted) ** (1 / len(counted)) if counted and normalize else 1.0
        out = []
        for value in clipped:
            out.append(0.0 if value is None else advantage * (value / mean if weighs else 1.0))
        table.append(out)
    return table


def vppo(lengths, correct, errors, prefix_value, margin, nonnegative):
    """Token advantages of a group's rollouts; an error is the number of tokens before it."""
    tokens, means = [], []
    for length, verdict, error in zip(lengths, correct, errors, strict=True):
        if verdict is True:
            values = [(1.0, False)] * length
        else:
            end = max(0, (length if error is None else error) - margin)
            values = [(prefix_value, True) if place < end else (0.0, False) for place in range(length)]
        tokens.append(values)
        if verdict is not None:
            means.append(sum(value for value, _ in values) / length)
    baseline = sum(means) / len(means) if means else 0.0
    table = []
    for values, verdict in zip(tokens, correct, strict=True):
        row = []
        for value, in_prefix in values:
            advantage = 0.0 if verdict is None else value - baseline
            row.append(max(0.0, advantage) if nonnegative and in_prefix else advantage)
        table.append(row)
    return table
