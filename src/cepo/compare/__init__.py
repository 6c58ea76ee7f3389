"""Arms side by side, seed by seed: options, runs, statistics, tables. Imports trainer and below."""
