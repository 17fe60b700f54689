"""Inference: from an image and classes to masks, and to files."""
