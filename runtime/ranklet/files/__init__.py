"""Files: whole or absent, and JSON lines."""
