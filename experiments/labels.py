"""Names of arms in files, tables and figures."""

DOWN_WEIGHTED = "down-weighted negatives"  # GRPO, negative_advantage_weight 0.05: the baseline
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
    """The name of an arm or hint in tables and figures."""
    return SHOWN.get(name, name)
