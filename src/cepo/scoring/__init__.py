"""Log-probs of rollouts under other prompts; the pipeline from a group to its evidence. Imports methods and below."""
