"""The format as a specification: `python -m tests.spec --write` makes the test vectors of docs/spec."""
