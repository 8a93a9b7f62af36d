"""Parallel text: reading and checking, tokenising, storing and batching."""
