"""From unlabelled images to a labelled set that people can correct and models can train on."""
