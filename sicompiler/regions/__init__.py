"""Regions: operators that are sliced together. The graph as they see it, halos, how one grows, and one as a value."""
