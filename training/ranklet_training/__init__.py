"""Train, evaluate and keep attention recommenders with PyTorch."""
