"""The mathematics of the method: pure functions of tensors and keyword floats, without config objects or Ray."""
