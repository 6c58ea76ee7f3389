"""Estimates of a run's memory, from configurations, without weights."""
