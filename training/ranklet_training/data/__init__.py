"""Event logs, item files and data sets: from raw rows to histories and targets."""
