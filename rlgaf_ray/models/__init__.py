"""Generators, discriminators and tokenizers."""
