"""The house: layers, names, packaging, documentation."""
