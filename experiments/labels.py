"""Names of arms and placements as tables and figures show them. The results keep the names that the runs had."""

LABELS = {
    "base": "untrained",
    "tempered": "untrained, at GRPO's entropy",
    "blame 0.05": "down-weighted negatives",
    "blame 0": "no negatives",
    "cepo_additive": "additive evidence",
    "cepo_additive within": "additive evidence, without zero-variance groups",
    "all wrong blamed": "uniform negatives in zero-variance groups",
    "cepo paper": "cepo, paper preset",
    "oracle, mistakes only": "oracle, negatives at mistakes only",
    "grpo, blame at 0.05": "down-weighted negatives",
    "grpo, no blame": "no negatives",
    "cepo strong": "cepo, λ 1, ε 0.9",
    "cepo strong, rollouts": "cepo, λ 1, ε 0.9, hints are rollouts",
    "cepo strong, blame at 0.05": "cepo, λ 1, ε 0.9, down-weighted negatives",
    "rlsd strong": "rlsd, λ 1, ε 0.9",
    "oracle strong": "oracle, λ 1, ε 0.9",
    "that it is right, or wrong (cscr)": "asserted verdict (cscr)",
    "rollout said to be right (rlcsd)": "rollout, asserted correct (rlcsd)",
    "solution or wrong rollout, default": "solution or incorrect rollout, default",
    "solution or wrong rollout, plain": "solution or incorrect rollout, plain",
    "nothing": "no hint",
    "right": "correct",
    "wrong": "incorrect",
}


def label(name: str) -> str:
    """The name of an arm, placement or verdict in tables and figures."""
    return LABELS.get(name, name)
