"""Whole models and random ones, compiled, against the untouched ones."""
