"""Step Rehash in a running pipeline: its hooks, what it learns, calibration and trials."""
