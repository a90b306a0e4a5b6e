"""Regions: how they grow, windows and heads, halos, and what their axes are called."""
