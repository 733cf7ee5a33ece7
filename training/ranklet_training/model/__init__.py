"""The model and what trains it: attention, losses, optimizer."""
