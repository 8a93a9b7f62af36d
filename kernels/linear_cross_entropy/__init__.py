"""Output projection and label-smoothed cross-entropy without the full matrix of logits."""
