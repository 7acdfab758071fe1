"""Measurements: run as `python -m tests.benchmarks.NAME`, alone on a quiet machine. No test asserts a time."""
