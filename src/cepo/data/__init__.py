"""Loading of models, data sets and reward functions; checks, sampling, evaluation. Imports scoring and below."""
