"""Whole diffusers pipelines under one budget."""
