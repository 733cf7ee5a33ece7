"""Training runs: settings, files, training loop."""
