"""A training run: its settings, its files, its loop."""
