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
