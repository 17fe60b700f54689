"""People decide on regions: the page, the log of decisions, agreement, exchange with other programs."""
