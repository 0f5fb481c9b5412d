"""Side-by-side benchmarks: each prints a table with its baselines from the same run.  `python -m bench --help`."""
