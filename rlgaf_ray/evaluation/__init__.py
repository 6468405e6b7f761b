"""Held-out evaluation: an independent judge, diversity, and what perplexity hides."""
