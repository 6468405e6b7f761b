"""Rollout engines: prompts in, sampled responses with their log-probabilities out."""
