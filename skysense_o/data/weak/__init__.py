"""Masks from labels that are less than masks: boxes, points, kinds of scenes."""
