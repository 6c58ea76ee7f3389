"""Speed, measured side by side: `python -m benchmarks --help`. Nothing here is a test, and no test times anything."""
