"""Presets, folders of diffusers, and closed forms in their sizes."""
