"""``rlgaf compare``: a config's method against its baselines, on the same demonstrations."""
