"""Log-probs of rollouts under other prompts, and the pipeline from a group to its evidence."""
