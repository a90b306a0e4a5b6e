"""Axis rules: printed forms, and every rule against the operator itself."""
