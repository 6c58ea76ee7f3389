"""Names of arms in files, tables and figures."""

DOWN_WEIGHTED = "down-weighted negatives"  # GRPO, negative_advantage_weight 0.05: the baseline
PREREGISTERED = {  # name in preregistration.md's first version: name here
    "blame 0.05": DOWN_WEIGHTED,
    "blame 0": "no negatives",  # GRPO, negative_advantage_weight 0
    "all wrong blamed": "uniform penalty",  # equal negative advantages in groups without a correct rollout
    "cepo_additive within": "cepo_additive, mixed groups",  # no credit in groups without a correct rollout
    "cepo paper": "cepo, paper preset",
    "tempered": "entropy-matched base",  # the untrained policy at the temperature with GRPO's entropy
}
SHOWN = {  # name in the results: name in tables and figures
    "base": "untrained",
    "entropy-matched base": "untrained, at GRPO's entropy",
    "cepo_additive": "additive evidence",
    "cepo_additive, mixed groups": "additive evidence, without zero-variance groups",
    "uniform penalty": "uniform penalty in zero-variance groups",
    "oracle, mistakes only": "oracle, negatives at mistakes only",
    "cepo strong": "cepo, λ 1, ε 0.9",
    "cepo strong, rollouts": "cepo, λ 1, ε 0.9, hints are rollouts",
    "cepo strong, down-weighted negatives": "cepo, λ 1, ε 0.9, down-weighted negatives",
    "rlsd strong": "rlsd, λ 1, ε 0.9",
    "oracle strong": "oracle, λ 1, ε 0.9",
    "verdict (cscr)": "asserted verdict (cscr)",
}


def label(name: str) -> str:
    """The name of an arm, placement or hint in tables and figures."""
    return SHOWN.get(name, name)
