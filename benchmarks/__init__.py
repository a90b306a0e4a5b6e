"""Benchmarks: every figure of the README and the notes has a command here."""
