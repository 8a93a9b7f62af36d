"""Scaled dot-product attention that never holds the (query, key) score matrix."""
