"""Optimiser, trainer, hooks and evaluation of a run."""
