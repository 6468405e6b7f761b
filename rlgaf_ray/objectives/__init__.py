"""Losses, rewards and advantages: pure functions of tensors and keyword floats, free of config objects and Ray."""
