"""The table of data sets: one `DatasetSpec` per data set, in one file per task."""
