"""Credit of rollouts by method: pages, terminal output, evidence statistics."""
