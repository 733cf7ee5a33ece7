"""A bundle on disk: its manifest, its files, the ids of its catalogue."""
