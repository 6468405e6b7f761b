"""What a config will need, before anything starts: placement, memory, traffic, the expected bottleneck."""
