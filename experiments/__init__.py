"""Configs, the command line, callbacks and benchmarks; ``python -m experiments`` is the entry."""
