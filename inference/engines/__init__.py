"""How one training step is run."""
