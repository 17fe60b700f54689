"""Optimiser, trainer and the hooks of a run."""
