"""Estimates for a config before it runs: placement, memory, traffic and the expected bottleneck."""
