"""Held-out evaluation: independent judges, diversity, and distance to real text."""
