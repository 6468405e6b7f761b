"""Updates of the generator and of the discriminator, and the supervised warm-ups."""
