"""``rlgaf compare``: one config's method beside its rivals, on the same demonstrations."""
