"""Timings: `python -m benchmarks` or `make bench`."""
