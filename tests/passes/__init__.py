"""Passes and the operators that they insert: the same values, before and after."""
