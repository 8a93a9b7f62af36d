"""Public checkpoints: one file per family, which reads it, renames it and says what it could not load."""
