"""Names of the arms of the studies: as files and figures have them, by their names in earlier versions of the pages."""

LABELS = {
    "blame 0.05": "down-weighted negatives",  # grpo, negative_advantage_weight 0.05: the baseline
    "grpo, blame at 0.05": "down-weighted negatives",
    "blame 0": "no negatives",  # grpo, negative_advantage_weight 0
    "grpo, no blame": "no negatives",
    "all wrong blamed": "uniform penalty",  # the same negative advantage for every token of groups without a correct rollout
    "cepo_additive within": "cepo_additive, mixed groups",  # no credit in groups without a correct rollout
    "cepo paper": "cepo, paper preset",
    "cepo strong, blame at 0.05": "cepo strong, down-weighted negatives",
    "tempered": "entropy-matched base",  # the untrained policy at the temperature with GRPO's entropy
    # Rollouts and hints of credit.json and credit.md:
    "right": "correct",
    "wrong": "incorrect",
    "solution or wrong rollout": "solution or incorrect rollout",
    "rollout said to be right (rlcsd)": "rollout asserted correct (rlcsd)",
    "that it is right, or wrong (cscr)": "verdict (cscr)",
    "nothing": "no hint",
    "believed": "taught",  # mistakes that the warm start taught
    "by chance": "other",  # all other mistakes
}
