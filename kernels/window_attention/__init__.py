"""Shifted-window attention with relative positions (Liu et al. 2021, Swin Transformer), and Swin V2's cosine form."""
