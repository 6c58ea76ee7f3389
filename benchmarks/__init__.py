"""Speed and memory beside TRL: `python -m benchmarks --help`."""
