"""Measurements of this project beside its peers, in one run on one machine: `python -m benchmarks.NAME`."""

SUITES = (
    "inference",
    "families",
    "training",
    "finetune",
    "cold-start",
    "load",
    "compile",
    "preprocess",
    "pipeline",
    "serving",
    "convert",
)
"""In the order of the results. Each is a module here, with a function `run` of `Options` that gives its section."""
