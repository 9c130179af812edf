"""Broken inputs of every reader: `pytest tests/fuzz` for a minute; `python -m tests.fuzz --minutes N` for more."""
