"""Arms against each other, seed by seed: their options, runs, learning rates, statistics, tables. Imports trainer and below."""
