"""Benchmarks: every figure of the README and the notes has a command here."""

import os

# What is measured is worked out here and now, not read from an earlier run; who measures the cache has one of its own.
os.environ.setdefault("SICOMPILER_CACHE", "off")
