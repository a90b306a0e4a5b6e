"""Guards: what a trace read of a live model is told from what changed."""
