"""Models, data sets, rewards by name; checks, sampling, evaluation, saved rollouts. Imports scoring and below."""
