"""Arms side by side, seed by seed: options, runs, learning rates, statistics, tables. Imports trainer and below."""
