"""A training run and an evaluation from start to end."""
