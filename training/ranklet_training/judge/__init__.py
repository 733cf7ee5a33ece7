"""Evaluation: metrics, comparisons, hyperparameter searches, plots."""
