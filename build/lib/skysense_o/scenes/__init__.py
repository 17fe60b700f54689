"""Georeferenced rasters of any size: read in windows, segmented, written on the same grid with the same CRS."""
