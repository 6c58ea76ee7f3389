"""Studies on the figures task and on SmolLM2: `python -m experiments.NAME`. They import cepo, never the reverse."""
