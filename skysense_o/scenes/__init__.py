"""Georeferenced rasters of any size: read by windows, segmented, written with their place."""
