"""Training, evaluation and comparison of attention recommenders with PyTorch."""
