"""The data engine: turns unlabelled images into a labelled data set, with human review."""
