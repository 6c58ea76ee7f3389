"""Models, data sets and reward functions by name, their checks, sampling, evaluation, saved rollouts. Imports scoring and below."""
