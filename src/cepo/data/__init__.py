"""Loading of models, datasets and reward functions; checks, sampling, evaluation. Imports scoring and below."""
