"""Log-probs of rollouts under other prompts, and the one pipeline from a group to its token advantages. Imports methods and below."""
