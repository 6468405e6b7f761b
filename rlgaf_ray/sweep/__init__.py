"""``rlgaf tune``: many runs over a search space, with Ray Tune."""
