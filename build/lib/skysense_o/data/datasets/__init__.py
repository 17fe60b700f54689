"""The table of data sets: one DatasetSpec each, in one file per task."""
