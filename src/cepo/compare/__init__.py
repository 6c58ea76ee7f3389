"""Comparison of methods on an equal budget: arms, runs, statistics, report."""
