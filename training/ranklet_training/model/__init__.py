"""Models, losses and optimizers."""
