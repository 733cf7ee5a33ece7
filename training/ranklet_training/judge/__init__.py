"""How good a model is: metrics, comparisons, searches, plots."""
